"""Answers from a server that speaks OpenAI's chat completions (`POST {base_url}/chat/completions`).

The key is read from the environment for each call, goes into the request's header and nowhere else.
"""

import email.utils
import json
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import httpx2

from spa_recipes.data.rows import Message
from spa_recipes.errors import DataError, RecipeError, SpaError, TryAgainError
from spa_recipes.recipe.schema import Endpoint

FIRST_PAUSE_SECONDS = 1.0
"""Before the second try; it doubles with each further one."""
LONGEST_PAUSE_SECONDS = 60.0
_CONNECT_SECONDS = 10.0
_SHOWN = 200
"""Characters of a server's own words in an error."""


def api_key(endpoint: Endpoint) -> str | None:
    """The key for an endpoint; None where the recipe says that it needs none.

    Raises:
        RecipeError: the environment variable is not set, or holds what no HTTP header can.
    """
    name = endpoint.api_key_env
    if name is None:
        return None
    key = os.environ.get(name, "")
    if not key:
        raise RecipeError(
            f"the environment variable {name} is not set, which holds the key of {_name(endpoint)}",
            fix=f"export {name}=..., or set api_key_env: null if the server wants no key",
        )
    # The HTTP library would show such a key in its error.
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise RecipeError(
            f"the environment variable {name} holds white space or characters beyond ASCII, and so no key",
            fix=f"set {name} to the key alone",
        )
    return key


def complete(
    endpoint: Endpoint,
    conversations: Sequence[list[Message]],
    *,
    max_tokens: int,
    temperature: float,
    seed: int | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> list[str]:
    """The assistant's next message in each conversation, in their order, however many are under way at a time.

    A lost connection, 408, 429, 5xx and an answer that is no chat completion are tried again, after the pause that the
    server asks for (`Retry-After`) or a growing one; after `endpoint.max_retries` further tries, and after any other
    status at once, the whole call ends. A message without text, such as a refusal, is the empty string.

    Args:
        max_tokens: new tokens per answer at most.
        temperature: 0 is as greedy as the server can; not sent to a `reasoning_model`.
        seed: sent as it is; what it promises depends on the server.
        on_progress: called in this thread with the number of answers there are so far.

    Raises:
        RecipeError: no key, or the server refuses it (401, 403) or knows no such address or model (404).
        DataError: the server refuses a question (other 4xx), or does not speak the protocol.
        TryAgainError: the network or the server stays away, or the account has no quota left.
    """
    if not conversations:
        return []
    key = api_key(endpoint)
    fields: dict[str, Any] = {"model": endpoint.model}
    if endpoint.reasoning_model:
        fields["max_completion_tokens"] = max_tokens
    else:
        fields |= {"max_tokens": max_tokens, "temperature": temperature}
    if seed is not None:
        fields["seed"] = seed
    workers = min(endpoint.max_concurrency, len(conversations))
    stopped = threading.Event()
    with (
        httpx2.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(endpoint.timeout_seconds, connect=min(_CONNECT_SECONDS, endpoint.timeout_seconds)),
            limits=httpx2.Limits(max_connections=workers, max_keepalive_connections=workers),
        ) as client,
        ThreadPoolExecutor(workers) as pool,
    ):
        futures = [
            pool.submit(_ask, client, endpoint, {**fields, "messages": messages}, stopped) for messages in conversations
        ]
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                future.result()
                if on_progress is not None:
                    on_progress(done)
        except BaseException:
            # Nothing more is asked: the pool waits for what is under way, and for no pause.
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return [future.result() for future in futures]


def _ask(client: httpx2.Client, endpoint: Endpoint, body: dict[str, Any], stopped: threading.Event) -> str:
    """The answer to one question, after as many tries as are allowed."""
    for attempt in range(endpoint.max_retries + 1):
        pause = _growing_pause(attempt)
        try:
            response = client.post(f"{endpoint.base_url.rstrip('/')}/chat/completions", json=body)
        except httpx2.TransportError as error:
            problem: SpaError = _unreachable(endpoint, error)
        except (httpx2.DecodingError, httpx2.InvalidURL) as error:
            problem = _no_completion(endpoint, str(error))
        else:
            if response.is_success:
                try:
                    return _content(response.text)
                except ValueError as error:
                    problem = _no_completion(endpoint, str(error))
            else:
                problem = _refusal(endpoint, response)
                if not (_passes(response.status_code) and not _out_of_quota(response)):
                    raise problem
                pause = _wished_pause(response.headers.get("Retry-After"), pause)
        if attempt == endpoint.max_retries or stopped.wait(pause):
            raise problem
    raise AssertionError("unreachable")


def _content(text: str) -> str:
    """The words of a chat completion.

    Raises:
        ValueError: it is none.
    """
    try:
        message = json.loads(text)["choices"][0]["message"]
        content = message["content"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(" ".join(text.split()) or "an empty body") from error
    if content is None:  # a refusal, a filter, or all tokens spent on thinking
        return ""
    if not isinstance(content, str):
        raise ValueError(f"a message whose content is a {type(content).__name__}")
    return content


# --- pauses


def _growing_pause(attempt: int) -> float:
    """Seconds: doubling, with a spread, so that questions which failed together do not come back together."""
    return min(FIRST_PAUSE_SECONDS * 2.0**attempt, LONGEST_PAUSE_SECONDS) * random.uniform(0.75, 1.25)


def _wished_pause(header: str | None, otherwise: float) -> float:
    """Seconds that a `Retry-After` header asks for, a number or a date; at most the longest pause."""
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


def _name(endpoint: Endpoint) -> str:
    return f"{endpoint.base_url} (model {endpoint.model})"


def _passes(status: int) -> bool:
    """Whether a status is of the kind that goes away by itself."""
    return status in (408, 429) or status >= 500


def _out_of_quota(response: httpx2.Response) -> bool:
    """OpenAI's word for an empty account, which it sends with 429."""
    return "insufficient_quota" in response.text


def _unreachable(endpoint: Endpoint, error: httpx2.TransportError) -> SpaError:
    if isinstance(error, httpx2.UnsupportedProtocol):
        return RecipeError(f"{_name(endpoint)}: {error}", fix="check base_url")
    reason = str(error) or type(error).__name__
    if isinstance(error, httpx2.TimeoutException):
        fix = "run the same command again, or raise timeout_seconds or lower max_concurrency"
        return TryAgainError(f"{_name(endpoint)} does not answer in time ({type(error).__name__})", fix=fix)
    fix = "check base_url and the network, and run the same command again"
    return TryAgainError(f"{_name(endpoint)} cannot be reached ({reason})", fix=fix)


def _no_completion(endpoint: Endpoint, what: str) -> SpaError:
    return DataError(
        f"{_name(endpoint)} gives no chat completion but {_without_key(endpoint, what)}",
        fix="check base_url, which ends before /chat/completions, e.g. https://api.openai.com/v1",
    )


def _refusal(endpoint: Endpoint, response: httpx2.Response) -> SpaError:
    """The error for a status that is not a success."""
    status = response.status_code
    words = _without_key(endpoint, _words(response.text))
    what = f"{_name(endpoint)} answers {status}" + (f": {words}" if words else "")
    variable = endpoint.api_key_env
    if status == 401:  # whose words tend to show part of the key
        what = f"{_name(endpoint)} answers 401: it does not accept the key"
        return RecipeError(what, fix=f"check {variable}" if variable else "name the key's variable in api_key_env")
    if status == 403:
        return RecipeError(what, fix=f"check what the key in {variable} may do" if variable else "set api_key_env")
    if status == 404:
        return RecipeError(what, fix="check base_url and model; GET base_url/models lists the models")
    if 300 <= status < 400:
        return RecipeError(what, fix=f"set base_url to where it points: {response.headers.get('Location', '?')}")
    if _passes(status):
        with_quota = "run the same command again later" + ("; lower max_concurrency" if status == 429 else "")
        return TryAgainError(what, fix="fill up the account" if _out_of_quota(response) else with_quota)
    return DataError(what, fix="check model, and that it takes questions of this kind and length")


def _words(text: str) -> str:
    """What a server says about an error: its message, else the beginning of the body."""
    try:
        message = json.loads(text)["error"]["message"]
        text = message if isinstance(message, str) else text
    except (ValueError, LookupError, TypeError, RecursionError):
        pass
    return " ".join(text.split())


def _without_key(endpoint: Endpoint, text: str) -> str:
    """Cut to what is shown, and without the key, in case the server repeats it."""
    key = os.environ.get(endpoint.api_key_env, "") if endpoint.api_key_env else ""
    return (text.replace(key, "***") if key else text)[:_SHOWN]
