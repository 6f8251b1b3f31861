"""Servers that want to take memory, time or a stage by what they answer."""

import gzip
import json
import time
import tracemalloc
from typing import Any

import pytest

from spa_recipes.errors import DataError, TryAgainError
from spa_recipes.generation import endpoint as module
from spa_recipes.generation.endpoint import complete
from spa_recipes.recipe.schema import Endpoint
from tests.kit.endpoint_server import Answer, EndpointServer, Reply, completion


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def ask(answer: Answer, **changes: Any) -> str:
    with EndpointServer(answer) as server:
        endpoint = Endpoint.model_validate(server.endpoint(max_retries=1, **changes))
        return complete(endpoint, [[{"role": "user", "content": "q"}]], max_tokens=5, temperature=0.0)[0]


@pytest.mark.parametrize("status", [200, 400, 500, 302])
def test_a_compressed_answer_that_grows_a_thousandfold(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setattr(module, "MAX_ANSWER_BYTES", 2**20)
    bomb = Reply(status, gzip.compress(bytes(2**26)), {"Content-Encoding": "gzip"})
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="gives no chat completion but more than 1 MiB"):
            ask(lambda body: bomb)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_an_answer_of_many_megabytes_that_is_not_compressed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ANSWER_BYTES", 2**20)
    with pytest.raises(DataError, match="more than 1 MiB"):
        ask(lambda body: "x" * 2**21)


def test_a_compressed_answer_of_the_usual_size_is_read() -> None:
    packed = Reply(200, gzip.compress(completion("hello").encode()), {"Content-Encoding": "gzip"})
    assert ask(lambda body: packed) == "hello"


@pytest.mark.parametrize("status", [200, 500])
def test_a_server_that_sends_a_byte_now_and_then(status: int) -> None:
    started = time.monotonic()
    with pytest.raises(TryAgainError, match=r"does not answer within 0.3 s; .*raise timeout_seconds"):
        ask(lambda body: Reply(status, "x" * 1000, pause=0.05), timeout_seconds=0.3)
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("sent", "read"), [("a\ud800b", "a\ufffdb"), ("\udfff", "\ufffd"), ("\U0001f600", "\U0001f600")]
)
def test_half_a_surrogate_pair_in_an_answer(sent: str, read: str) -> None:
    answer = ask(lambda body: sent)
    assert answer == read
    answer.encode()


def test_half_a_surrogate_pair_in_the_words_of_an_error() -> None:
    with pytest.raises(DataError) as caught:
        ask(lambda body: Reply(400, json.dumps({"error": {"message": "a\ud800b"}})))
    str(caught.value).encode()


def test_an_answer_that_is_nested_without_end() -> None:
    with pytest.raises(DataError, match="gives no chat completion but"):
        ask(lambda body: Reply(200, '{"choices": ' + "[" * 100_000))
