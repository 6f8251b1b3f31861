"""Answers from a server that speaks OpenAI's chat completions, through the `openai` package.

Each call reads the key from the environment and sends it in the request's header; nothing else gets it.
"""

import asyncio
import email.utils
import json
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import openai

from spa_recipes.data.rows import Message
from spa_recipes.errors import DataError, RecipeError, SpaError, TryAgainError
from spa_recipes.generation.api_key import api_key, name_of
from spa_recipes.generation.bounded_client import BoundedClient
from spa_recipes.recipe.schema import Endpoint
from spa_recipes.redaction import redacted

FIRST_PAUSE_SECONDS = 1.0
"""The pause before the second try; it doubles before each further one."""
LONGEST_PAUSE_SECONDS = 60.0
_CONNECT_SECONDS = 10.0
MAX_ANSWER_BYTES = 16 * 1024 * 1024
"""No answer of a language model is larger, with all that a server wraps around it."""
_SHOWN = 200
"""The most characters of a server's own words that an error shows."""


def complete(
    endpoint: Endpoint,
    conversations: Sequence[list[Message]],
    *,
    max_tokens: int,
    temperature: float,
    seed: int | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> list[str]:
    """Return the assistant's next message in each conversation, in the order of the conversations.

    A lost connection, an answer that takes longer than `endpoint.timeout_seconds`, a status of 408, 429 or 5xx, and an
    answer that is no chat completion (or too large for one) are tried again up to `endpoint.max_retries` times. The
    pause before a try is the one that the server asks for (`Retry-After`), or else a growing one. The first question
    that fails for good, or gets any other status, ends the whole call. A message without text, such as a refusal,
    counts as the empty string. Half a surrogate pair in a message becomes U+FFFD.

    Args:
        max_tokens: the most new tokens per answer.
        temperature: 0 is as greedy as the server can be; a `reasoning_model` is not sent any.
        seed: sent as it is; what it promises depends on the server.
        on_progress: called with the number of answers so far.

    Raises:
        RecipeError: there is no key, the server refuses it (401, 403), or it knows no such address or model (404).
        DataError: the server refuses a question (other 4xx), or does not speak the protocol.
        TryAgainError: the network or the server stays away, or the account has no quota left.
    """
    if not conversations:
        return []
    fields: dict[str, Any] = {"model": endpoint.model}
    if endpoint.reasoning_model:
        fields["max_completion_tokens"] = max_tokens
    else:
        fields |= {"max_tokens": max_tokens, "temperature": temperature}
    if seed is not None:
        fields["seed"] = seed
    return asyncio.run(_answers(endpoint, conversations, fields, on_progress))


async def _answers(
    endpoint: Endpoint,
    conversations: Sequence[list[Message]],
    fields: dict[str, Any],
    on_progress: Callable[[int], None] | None,
) -> list[str]:
    """Ask all questions, `max_concurrency` of them at a time. The first error ends those that are under way."""
    answers = [""] * len(conversations)
    open_questions = enumerate(conversations)
    done = 0

    async def ask_one_after_another(client: openai.AsyncOpenAI) -> None:
        nonlocal done
        for number, messages in open_questions:
            answers[number] = await _ask(client, endpoint, {**fields, "messages": messages})
            done += 1
            if on_progress is not None:
                on_progress(done)

    try:
        async with _client(endpoint) as client, asyncio.TaskGroup() as group:
            for _ in range(min(endpoint.max_concurrency, len(conversations))):
                group.create_task(ask_one_after_another(client))
    except BaseExceptionGroup as errors:
        first = errors.exceptions[0]
    else:
        return answers
    raise first


def _client(endpoint: Endpoint) -> openai.AsyncOpenAI:
    """Return a client that never tries again by itself: it would try in fewer cases than we do.

    Raises:
        RecipeError: there is no key, or the address or a proxy's variable cannot be read.
    """
    key = api_key(endpoint)
    timeout = openai.Timeout(endpoint.timeout_seconds, connect=min(_CONNECT_SECONDS, endpoint.timeout_seconds))
    try:
        return openai.AsyncOpenAI(
            api_key=key or "none",  # without one, the package would take OPENAI_API_KEY
            base_url=endpoint.base_url,
            max_retries=0,
            timeout=timeout,
            http_client=BoundedClient(timeout, endpoint.timeout_seconds, MAX_ANSWER_BYTES),
        )
    except Exception as error:  # of the HTTP library below, whose types are not part of openai
        what = f"{name_of(endpoint)} cannot be asked: {_shown(str(error))}"
    raise RecipeError(what, fix="check base_url, and the proxy variables of the environment if there are any")


def _headers(endpoint: Endpoint) -> dict[str, str | openai.Omit]:
    """Return what keeps the variables that the package reads by itself from reaching a server that they are not for."""
    unsent = {"OpenAI-Organization", "OpenAI-Project"} | ({"Authorization"} if endpoint.api_key_env is None else set())
    return dict.fromkeys(unsent, openai.omit)


async def _ask(client: openai.AsyncOpenAI, endpoint: Endpoint, fields: dict[str, Any]) -> str:
    """Return the answer to one question, after as many tries as are allowed."""
    create = client.chat.completions.with_raw_response.create
    for attempt in range(endpoint.max_retries + 1):
        pause, passes = _growing_pause(attempt), True
        # A problem is raised outside of the `except` blocks: the errors caught there may show the key.
        try:
            reply = await create(**fields, extra_headers=_headers(endpoint))
            return _content(reply.text)
        except (TimeoutError, openai.APITimeoutError):
            problem: SpaError = _too_slow(endpoint)
        except openai.APIConnectionError as error:
            problem = _unreachable(endpoint, error)
        except openai.APIStatusError as error:
            problem = _refusal(endpoint, error)
            passes = _passes(error.status_code) and not _out_of_quota(error)
            pause = _wished_pause(error.response.headers.get("Retry-After"), pause)
        except ValueError as error:
            problem = _no_completion(endpoint, str(error))
        if not passes or attempt == endpoint.max_retries:
            raise problem
        await asyncio.sleep(pause)
    raise AssertionError("unreachable")


def _content(text: str) -> str:
    """Return the words of a chat completion.

    Raises:
        ValueError: the text is no chat completion.
    """
    try:
        message = json.loads(text)["choices"][0]["message"]
        content = message["content"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(" ".join(text.split()) or "an empty body") from error
    if content is None:  # a refusal, a filter, or a model that spent all its tokens on thinking
        return ""
    if not isinstance(content, str):
        raise ValueError(f"a message whose content is a {type(content).__name__}")
    return redacted(_whole_characters(content))


# --- pauses


def _growing_pause(attempt: int) -> float:
    """Return seconds that double with each try; they vary, so that questions that failed together part."""
    return min(FIRST_PAUSE_SECONDS * 2.0**attempt, LONGEST_PAUSE_SECONDS) * random.uniform(0.75, 1.25)


def _wished_pause(header: str | None, otherwise: float) -> float:
    """Return the seconds that a `Retry-After` header asks for, as a number or a date; at most the longest pause."""
    if header is None:
        return otherwise
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
        except ValueError:
            return otherwise
    return min(max(seconds, 0.0), LONGEST_PAUSE_SECONDS) if seconds == seconds else otherwise  # not NaN


# --- errors


def _passes(status: int) -> bool:
    """Say whether a status goes away by itself."""
    return status in (408, 429) or status >= 500


def _out_of_quota(error: openai.APIStatusError) -> bool:
    """Say whether the account is empty; OpenAI sends this word with 429."""
    return "insufficient_quota" in error.response.text


def _too_slow(endpoint: Endpoint) -> SpaError:
    return TryAgainError(
        f"{name_of(endpoint)} does not answer within {endpoint.timeout_seconds:g} s",
        fix="run the same command again, or raise timeout_seconds or lower max_concurrency",
    )


def _unreachable(endpoint: Endpoint, error: openai.APIConnectionError) -> SpaError:
    cause = error.__cause__ or error
    reason = _shown(str(cause) or type(cause).__name__)
    fix = "check base_url and the network, and run the same command again"
    return TryAgainError(f"{name_of(endpoint)} cannot be reached ({reason})", fix=fix)


def _no_completion(endpoint: Endpoint, what: str) -> SpaError:
    return DataError(
        f"{name_of(endpoint)} gives no chat completion but {_shown(what)}",
        fix="check base_url, which ends before /chat/completions, e.g. https://api.openai.com/v1",
    )


def _refusal(endpoint: Endpoint, error: openai.APIStatusError) -> SpaError:
    """Return the error for a status that is not a success."""
    status = error.status_code
    words = _shown(_words(error.response.text))
    what = f"{name_of(endpoint)} answers {status}" + (f": {words}" if words else "")
    variable = endpoint.api_key_env
    if status == 401:  # its words tend to show part of the key
        what = f"{name_of(endpoint)} answers 401: it does not accept the key"
        return RecipeError(what, fix=f"check {variable}" if variable else "name the key's variable in api_key_env")
    if status == 403:
        return RecipeError(what, fix=f"check what the key in {variable} may do" if variable else "set api_key_env")
    if status == 404:
        return RecipeError(what, fix="check base_url and model; GET base_url/models lists the models")
    if 300 <= status < 400:
        location = error.response.headers.get("Location", "?")
        return RecipeError(what, fix=f"set base_url to where it points: {location}")
    if _passes(status):
        with_quota = "run the same command again later" + ("; lower max_concurrency" if status == 429 else "")
        return TryAgainError(what, fix="fill up the account" if _out_of_quota(error) else with_quota)
    return DataError(what, fix="check model, and that it takes questions of this kind and length")


def _words(text: str) -> str:
    """Return what a server says about an error: its message, or else its whole answer."""
    try:
        message = json.loads(text)["error"]["message"]
        text = _whole_characters(message) if isinstance(message, str) else text
    except (ValueError, LookupError, TypeError, RecursionError):
        pass
    return " ".join(text.split())


def _whole_characters(text: str) -> str:
    """Return a text from JSON, which may escape half a surrogate pair, as one that UTF-8 can write."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _shown(text: str) -> str:
    """Return the beginning of a server's own words, with *** for the key in case it repeats it."""
    return redacted(text)[:_SHOWN]
