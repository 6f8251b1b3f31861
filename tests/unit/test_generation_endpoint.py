"""Questions to an OpenAI-compatible server: order, tries, errors, and a key that stays where it belongs."""

import json
import logging
import random
import threading
import time
from email.utils import formatdate
from typing import Any

import pytest
from pydantic import ValidationError

from spa_recipes.data.rows import Message
from spa_recipes.errors import DataError, RecipeError, SpaError, TryAgainError
from spa_recipes.generation import endpoint as module
from spa_recipes.generation.endpoint import complete
from spa_recipes.recipe.schema import Endpoint
from tests.kit.endpoint_server import EndpointServer, Reply, completion

KEY = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def questions(count: int) -> list[list[Message]]:
    return [[{"role": "user", "content": str(number)}] for number in range(count)]


def echo(body: dict[str, Any]) -> str:
    return "answer to " + str(body["messages"][-1]["content"])


def ask(server: EndpointServer, count: int = 1, **changes: Any) -> list[str]:
    endpoint = Endpoint.model_validate(server.endpoint(**changes))
    return complete(endpoint, questions(count), max_tokens=5, temperature=0.0)


class Sometimes:
    """Gives these replies first, one per request, then answers."""

    def __init__(self, *replies: Reply) -> None:
        self._replies = list(replies)
        self._lock = threading.Lock()

    def __call__(self, body: dict[str, Any]) -> str | Reply:
        with self._lock:
            return self._replies.pop(0) if self._replies else echo(body)


# --- what is asked and answered


def test_answers_come_in_the_order_of_the_questions_from_several_threads() -> None:
    together = threading.Barrier(4)

    def slow(body: dict[str, Any]) -> str:
        if int(body["messages"][0]["content"]) < 4:
            together.wait(timeout=30)  # four at a time, or this breaks
        time.sleep(random.uniform(0, 0.02))
        return echo(body)

    counts: list[int] = []
    with EndpointServer(slow) as server:
        endpoint = Endpoint.model_validate(server.endpoint(max_concurrency=4))
        answers = complete(endpoint, questions(40), max_tokens=5, temperature=0.0, on_progress=counts.append)
    assert answers == [f"answer to {number}" for number in range(40)]
    assert counts == list(range(1, 41))
    assert server.most_at_once == 4


def test_one_at_a_time_gives_the_same() -> None:
    with EndpointServer(echo) as server:
        assert ask(server, 10, max_concurrency=1) == ask(server, 10, max_concurrency=7)


def test_the_body_is_the_protocols() -> None:
    conversation: list[Message] = [{"role": "system", "content": "s"}, {"role": "user", "content": "ü"}]
    with EndpointServer(echo) as server:
        endpoint = Endpoint.model_validate(server.endpoint())
        complete(endpoint, [conversation], max_tokens=7, temperature=0.5, seed=3)
        thinking = endpoint.model_copy(update={"reasoning_model": True})
        complete(thinking, [conversation], max_tokens=7, temperature=0.5)
    plain, reasoning = server.asked
    assert plain == {"model": "tester", "messages": conversation, "max_tokens": 7, "temperature": 0.5, "seed": 3}
    assert reasoning == {"model": "tester", "messages": conversation, "max_completion_tokens": 7}
    assert server.keys == [None, None]


def test_a_slash_at_the_end_of_the_address_is_no_matter() -> None:
    with EndpointServer(echo) as server:
        assert ask(server, base_url=server.base_url + "/") == ["answer to 0"]


def test_a_message_without_content_is_the_empty_text() -> None:
    with EndpointServer(lambda body: None) as server:
        assert ask(server) == [""]


def test_no_question_needs_neither_server_nor_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    nowhere = Endpoint(base_url="http://127.0.0.1:9/v1", model="m")
    assert complete(nowhere, [], max_tokens=1, temperature=0.0) == []


# --- tries


@pytest.mark.parametrize(
    "reply",
    [
        Reply(429, "{}"),
        Reply(500, "oops"),
        Reply(503, "<html>later</html>"),
        Reply(408),
        Reply(drop=True),
        Reply(body='{"choices": [{"mess'),
        Reply(body='{"choices": []}'),
        Reply(body="[]"),
        Reply(body=""),
        Reply(body='{"choices": [{"message": {"content": [1]}}]}'),
    ],
)
def test_what_passes_is_tried_again(reply: Reply) -> None:
    with EndpointServer(Sometimes(reply, reply)) as server:
        assert ask(server, max_retries=2) == ["answer to 0"]
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("reply", "kind", "said"),
    [
        (Reply(429, '{"error": {"message": "slow down"}}'), TryAgainError, "answers 429: slow down"),
        (Reply(502, "bad gateway"), TryAgainError, "answers 502: bad gateway"),
        (Reply(drop=True), TryAgainError, "cannot be reached"),
        (Reply(body="<html>hello</html>"), DataError, "gives no chat completion but <html>hello</html>"),
        (Reply(body=""), DataError, "an empty body"),
    ],
)
def test_what_does_not_pass_ends_after_the_last_try(reply: Reply, kind: type[SpaError], said: str) -> None:
    with EndpointServer(lambda body: reply) as server, pytest.raises(kind) as caught:
        ask(server, max_retries=2)
    assert len(server.asked) == 3
    assert said in str(caught.value)
    assert server.base_url in str(caught.value)
    assert "model tester" in str(caught.value)


@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [
        (400, DataError, "answers 400: the words"),
        (422, DataError, "answers 422: the words"),
        (401, RecipeError, "it does not accept the key; check SPA_TEST_KEY"),
        (403, RecipeError, "answers 403: the words; check what the key in SPA_TEST_KEY may do"),
        (404, RecipeError, "answers 404: the words; check base_url and model"),
        (307, RecipeError, "set base_url to where it points: http://other"),
    ],
)
def test_a_refusal_ends_at_once(monkeypatch: pytest.MonkeyPatch, status: int, kind: type[SpaError], said: str) -> None:
    monkeypatch.setenv("SPA_TEST_KEY", KEY)
    reply = Reply(status, '{"error": {"message": "the words"}}', {"Location": "http://other"})
    with EndpointServer(lambda body: reply) as server, pytest.raises(kind) as caught:
        ask(server, api_key_env="SPA_TEST_KEY")
    assert len(server.asked) == 1
    assert said in str(caught.value)
    assert server.base_url in str(caught.value)
    assert "model tester" in str(caught.value)


def test_an_empty_account_ends_at_once() -> None:
    reply = Reply(429, json.dumps({"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}))
    with EndpointServer(lambda body: reply) as server, pytest.raises(TryAgainError, match="fill up the account"):
        ask(server)
    assert len(server.asked) == 1


def test_one_refused_question_stops_the_others() -> None:
    def refuses(body: dict[str, Any]) -> str | Reply:
        return Reply(400, "no") if body["messages"][0]["content"] == "0" else echo(body)

    with EndpointServer(refuses) as server, pytest.raises(DataError, match="answers 400"):
        ask(server, 500, max_concurrency=1)
    assert len(server.asked) < 100


def test_an_error_does_not_wait_for_the_pauses_of_other_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_SECONDS", 300.0)
    monkeypatch.setattr(module, "LONGEST_PAUSE_SECONDS", 300.0)
    busy_was_asked = threading.Event()

    def answer(body: dict[str, Any]) -> Reply:
        if body["messages"][0]["content"] == "0":
            busy_was_asked.set()
            return Reply(503)
        busy_was_asked.wait(30)
        return Reply(400, "no")

    started = time.monotonic()
    with EndpointServer(answer) as server, pytest.raises(DataError):
        ask(server, 2)
    assert time.monotonic() - started < 100


def test_nobody_there_is_try_again() -> None:
    with EndpointServer(echo) as server:
        gone = server.endpoint(max_retries=1)
    with pytest.raises(TryAgainError, match="cannot be reached"):
        complete(Endpoint.model_validate(gone), questions(3), max_tokens=1, temperature=0.0)


def test_a_server_that_says_nothing_is_try_again() -> None:
    over = threading.Event()

    def silent(body: dict[str, Any]) -> str:
        over.wait(30)
        return ""

    with EndpointServer(silent) as server:
        with pytest.raises(TryAgainError, match="raise timeout_seconds"):
            ask(server, timeout_seconds=0.1, max_retries=1)
        over.set()


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [
        ("7", 7.0, 7.0),
        ("0", 0.0, 0.0),
        ("-3", 0.0, 0.0),
        ("1e9", 60.0, 60.0),
        ("nan", 5.0, 5.0),
        ("soon", 5.0, 5.0),
        (None, 5.0, 5.0),
        pytest.param(formatdate(time.time() - 1000, usegmt=True), 0.0, 0.0, id="a date in the past"),
        pytest.param(formatdate(time.time() + 1e6, usegmt=True), 60.0, 60.0, id="a date in the future"),
    ],
)
def test_the_pause_that_the_server_wants(header: str | None, least: float, most: float) -> None:
    assert least <= module._wished_pause(header, 5.0) <= most


def test_retry_after_goes_before_the_growing_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_SECONDS", 300.0)
    monkeypatch.setattr(module, "LONGEST_PAUSE_SECONDS", 300.0)
    with EndpointServer(Sometimes(Reply(429, "", {"Retry-After": "0"}))) as server:
        assert ask(server) == ["answer to 0"]  # within the test's time limit


def test_pauses_grow_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_SECONDS", 1.0)
    pauses = [module._growing_pause(attempt) for attempt in range(0, 40, 4)]
    assert 0.75 <= pauses[0] <= 1.25
    assert 12 <= pauses[1] <= 20
    assert max(pauses) <= 75


# --- the key


def test_the_key_is_sent_and_nothing_else_tells_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPA_TEST_KEY", KEY)
    with caplog.at_level(logging.DEBUG), EndpointServer(echo, key=KEY) as server:
        assert ask(server, api_key_env="SPA_TEST_KEY") == ["answer to 0"]
    assert server.keys == [f"Bearer {KEY}"]
    assert KEY not in caplog.text + "".join(capfd.readouterr()) + json.dumps(server.asked)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500, 200])
def test_a_server_that_repeats_the_key_does_not_bring_it_into_errors(
    monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setenv("SPA_TEST_KEY", KEY)
    near_the_cut = "x" * 190 + KEY
    with (
        EndpointServer(lambda body: Reply(status, f"{near_the_cut} {KEY}")) as server,
        pytest.raises(SpaError) as error,
    ):
        ask(server, api_key_env="SPA_TEST_KEY", max_retries=0)
    shown = [str(error.value), repr(error.value), str(error.value.__cause__), str(error.value.__context__)]
    assert not [text for text in shown if "sk-v" in text]


def test_variables_of_openais_package_do_not_reach_a_server_that_wants_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    with EndpointServer(echo) as server:
        assert ask(server) == ["answer to 0"]
    assert KEY not in str(server.headers)
    assert server.keys == [None]


@pytest.mark.parametrize("base_url", ["http://127.0.0.1:abc/v1", "http://[::1/v1"])
def test_an_address_that_cannot_be_read_is_one_line(base_url: str) -> None:
    with pytest.raises(RecipeError, match=r"cannot be asked: Invalid port.*check base_url"):
        complete(Endpoint(base_url=base_url, model="m", api_key_env=None), questions(1), max_tokens=1, temperature=0.0)


@pytest.mark.parametrize("key", [None, ""])
def test_a_missing_key_names_the_variable(monkeypatch: pytest.MonkeyPatch, key: str | None) -> None:
    monkeypatch.delenv("SPA_TEST_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("SPA_TEST_KEY", key)
    with EndpointServer(echo) as server, pytest.raises(RecipeError, match="SPA_TEST_KEY is not set") as caught:
        ask(server, api_key_env="SPA_TEST_KEY")
    assert server.base_url in str(caught.value)
    assert server.asked == []


@pytest.mark.parametrize("key", [KEY + "\n", f" {KEY}", KEY + "\u2019", "two words"])
def test_a_key_that_no_header_can_hold_is_told_without_showing_it(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("SPA_TEST_KEY", key)
    with EndpointServer(echo) as server, pytest.raises(RecipeError, match="white space or characters") as caught:
        ask(server, api_key_env="SPA_TEST_KEY")
    assert KEY not in str(caught.value)
    assert server.asked == []


def test_a_wrong_key_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPA_TEST_KEY", "sk-wrong")
    with EndpointServer(echo, key=KEY) as server, pytest.raises(RecipeError, match="check SPA_TEST_KEY") as caught:
        ask(server, api_key_env="SPA_TEST_KEY")
    assert "sk-wrong" not in str(caught.value)


# --- the recipe


@pytest.mark.parametrize(
    "base_url",
    [
        "api.openai.com/v1",
        "ftp://host/v1",
        "https://user:secret@host/v1",
        "https://host/v1?key=secret",
        "https://host/v1#x",
        "https://",
        "",
    ],
)
def test_an_address_that_is_none_or_holds_a_secret_is_refused(base_url: str) -> None:
    with pytest.raises(ValidationError):
        Endpoint(base_url=base_url, model="m")


@pytest.mark.parametrize("base_url", ["http://localhost:8000/v1", "https://api.openai.com/v1/", "http://[::1]:80"])
def test_an_address_is_taken_as_it_is(base_url: str) -> None:
    assert Endpoint(base_url=base_url, model="m").base_url == base_url


def test_the_server_of_the_tests_speaks_json() -> None:
    assert json.loads(completion("a"))["choices"][0]["message"]["content"] == "a"
