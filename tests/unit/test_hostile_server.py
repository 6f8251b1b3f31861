"""A server that repeats the key that it was sent does not bring it into what is printed, logged or stored."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from spa_recipes.errors import StageError
from spa_recipes.generation.endpoint import complete
from spa_recipes.recipe.schema import Endpoint
from spa_recipes.redaction import HIDDEN, redacted, redacted_output
from spa_recipes.run.rundir import RunDir
from tests.kit.endpoint_server import EndpointServer

KEY = "sk-very-secret-9876543210"


def test_an_answer_that_repeats_the_key_is_stored_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("SPA_TEST_OWN", KEY)  # a name that does not tell what it is
    with EndpointServer(lambda body: f"[[A]] your key is {KEY}") as server:
        endpoint = Endpoint.model_validate(server.endpoint(api_key_env="SPA_TEST_OWN"))
        answers = complete(endpoint, [[{"role": "user", "content": "?"}]], max_tokens=5, temperature=0.0)
    assert answers == [f"[[A]] your key is {HIDDEN}"]


@pytest.mark.parametrize(
    "name", ["OPENAI_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "WANDB_API_KEY", "db_password"]
)
def test_a_variable_named_like_a_secret_is_in_no_error(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "the-value-of-it")
    error = StageError("got the-value-of-it", where="at the-value-of-it", fix="drop the-value-of-it")
    assert str(error) == "at ***: got ***; drop ***"
    assert (error.what, error.where, error.fix) == ("got ***", "at ***", "drop ***")


@pytest.mark.parametrize(
    ("name", "value"),
    [("TOKENIZERS_PARALLELISM", "parallel-value"), ("MONKEY", "banana-split"), ("MY_KEY", "short"), ("MY_TOKEN", "")],
)
def test_other_variables_are_words_like_any(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    assert redacted(f"<{value}>") == f"<{value}>"


def test_a_secret_that_is_part_of_another_leaves_no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "12345678")
    monkeypatch.setenv("B_KEY", "12345678-and-more")
    assert redacted("12345678-and-more 12345678") == f"{HIDDEN} {HIDDEN}"


def test_the_output_of_a_stage_shows_no_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("A_TOKEN", KEY)
    with redacted_output():
        print("out", KEY)
        print("err", KEY, file=sys.stderr, flush=True)
        assert sys.stdout.encoding
    assert capsys.readouterr() == (f"out {HIDDEN}\n", f"err {HIDDEN}\n")


def test_the_events_of_a_run_show_no_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("A_TOKEN", KEY)
    RunDir(tmp_path).log_event("run stopped", reason=f"ValueError: {KEY}")
    assert json.loads((tmp_path / "events.jsonl").read_text())["reason"] == f"ValueError: {HIDDEN}"


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_an_error_that_nobody_foresaw_shows_no_secret(
    debug: list[str], monkeypatch: pytest.MonkeyPatch, spa_here: Any
) -> None:
    def fails(*arguments: object) -> None:
        raise ValueError(f"the server says {KEY}")

    monkeypatch.setenv("A_TOKEN", KEY)
    monkeypatch.setattr("spa_recipes.cli.status.print_runs", fails)
    answer = spa_here("status", *debug)
    assert answer.code == 1
    assert f"the server says {HIDDEN}" in answer.err
    assert KEY not in answer.err + answer.out
