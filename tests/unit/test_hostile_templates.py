"""Chat templates and questions that want to run for ever, to take all memory, or to be no files."""

import os
import resource
import threading
import time
from collections.abc import Callable
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
    before = resource.getrlimit(resource.RLIMIT_DATA)
    assert limits.render(lambda: "x") == "x"
    for error in (ValueError, MemoryError):

        def fails(error: type[Exception] = error) -> str:
            raise error

        with pytest.raises((ValueError, limits.EndlessTemplateError)):
            limits.render(fails)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    used = time.thread_time()
    while time.thread_time() < used + 3 * limits.MAX_SECONDS:  # nothing is raised here any more
        pass


def in_threads(count: int, work: Callable[[], str]) -> list[str]:
    """What each of some threads says: the text, or the error."""
    said: list[str] = []

    def say() -> None:
        try:
            said.append(limits.render(work))
        except Exception as error:
            said.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=say) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return said


def never_ends() -> str:
    while True:
        pass


def test_the_limits_hold_in_every_thread() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    assert in_threads(8, lambda: "x") == ["x"] * 8
    assert in_threads(3, never_ends) == ["EndlessTemplateError: it runs for more than 0.2 s"] * 3
    assert in_threads(2, lambda: "x" * 10**11) == ["EndlessTemplateError: it takes more memory than 64 MiB"] * 2
    assert in_threads(8, lambda: "x") == ["x"] * 8
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_the_time_of_other_threads_does_not_count() -> None:
    """A stage may compute in many threads while one of them renders."""
    ended = threading.Event()
    busy = [threading.Thread(target=lambda: sum(0 for _ in iter(ended.is_set, True))) for _ in range(3)]
    for thread in busy:
        thread.start()
    begin = time.thread_time()

    def half() -> str:
        while time.thread_time() < begin + limits.MAX_SECONDS / 2:
            pass
        return "x"

    try:
        assert limits.render(half) == "x"
    finally:
        ended.set()


def test_the_limit_holds_in_a_forked_process() -> None:
    limits.render(lambda: "x")  # this process has a thread that watches, and the other one has not
    child = os.fork()
    if child == 0:
        try:
            limits.render(never_ends)
        except limits.EndlessTemplateError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_a_pipe_a_device_and_a_huge_file_in_the_place_of_a_template(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "huge").write_text("x" * 2**21)
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path / "huge"):
        with pytest.raises(RecipeError, match="the file cannot be read"):
            load_question(path)
        with pytest.raises(DataError, match="the chat template cannot be read"):
            _read_template(str(path))
