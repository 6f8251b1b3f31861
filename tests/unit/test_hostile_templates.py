"""Chat templates and questions that want to run for ever, to take all memory, or to be no files."""

import os
import resource
import signal
import threading
from pathlib import Path

import pytest

from spa_recipes.data import template as limits
from spa_recipes.data.chat import Renderer, _read_template
from spa_recipes.data.questions import load_question
from spa_recipes.errors import DataError, RecipeError
from spa_recipes.sandbox.model import _build_tokenizer

NEVER_ENDS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
DOUBLES = "{% set ns = namespace(x='x' * 1000) %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"
HOSTILE = {
    NEVER_ENDS: "it runs for more than 0.2 s",
    DOUBLES: "it takes more memory than 64 MiB",
    "{{ 'x' * 10 ** 11 }}": "it takes more memory than 64 MiB",
    "{{ 'x' | center(10 ** 11) }}": "it takes more memory than 64 MiB",
    "{{ 'x' * 3000000 }}": "its text has more than 2,000,000 characters",
}


@pytest.fixture(autouse=True)
def _low_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_SECONDS", 0.2)
    monkeypatch.setattr(limits, "MAX_MEMORY_BYTES", 64 * 2**20)
    monkeypatch.setattr(limits, "MAX_CHARACTERS", 2_000_000)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_chat_template_that_never_ends_or_grows(text: str) -> None:
    tokenizer = _build_tokenizer()
    tokenizer.chat_template = text + tokenizer.chat_template
    with pytest.raises(DataError) as caught:
        Renderer(tokenizer, max_prompt_length=8, max_length=16)
    assert f"the chat template fails on a conversation of user, assistant: {HOSTILE[text]}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_question_that_never_ends_or_grows(text: str, tmp_path: Path) -> None:
    (tmp_path / "q.jinja").write_text("{{ prompt }}{{ answer_a }}{{ answer_b }}" + text)
    with pytest.raises(RecipeError) as caught:
        load_question(tmp_path / "q.jinja")
    assert f"the template fails: {HOSTILE[text]}" in str(caught.value)


def test_a_template_that_grows_for_some_data_only(tmp_path: Path) -> None:
    text = "{{ prompt }}{{ answer_a }}{{ answer_b }}{% if answer_a == 'now' %}" + NEVER_ENDS + "{% endif %}"
    (tmp_path / "q.jinja").write_text(text)
    question = load_question(tmp_path / "q.jinja")
    assert question([{"role": "user", "content": "q"}], "a", "b") == "qab"
    with pytest.raises(DataError, match=r"it runs for more than 0.2 s"):
        question([{"role": "user", "content": "q"}], "now", "b")


def test_limits_end_with_the_template() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA), signal.getsignal(signal.SIGVTALRM)
    assert limits.render(lambda: "x") == "x"
    for error in (ValueError, MemoryError):

        def fails(error: type[Exception] = error) -> str:
            raise error

        with pytest.raises((ValueError, limits.EndlessTemplateError)):
            limits.render(fails)
    assert (resource.getrlimit(resource.RLIMIT_DATA), signal.getsignal(signal.SIGVTALRM)) == before
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)


def test_a_template_is_rendered_in_another_thread_too() -> None:
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(limits.render(lambda: "x")))
    thread.start()
    thread.join()
    assert found == ["x"]


def test_a_pipe_a_device_and_a_huge_file_in_the_place_of_a_template(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "huge").write_text("x" * 2**21)
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path / "huge"):
        with pytest.raises(RecipeError, match="the file cannot be read"):
            load_question(path)
        with pytest.raises(DataError, match="the chat template cannot be read"):
            _read_template(str(path))
