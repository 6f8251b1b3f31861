"""`spa chat`: turns, Ctrl-C, two policies side by side, and what a policy may not do to a terminal."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from spa_recipes.chat import Reply
from spa_recipes.cli.conversation import Columns, converse
from spa_recipes.data.rows import Message
from tests.kit.models import REMOTE, judge_inputs, model_folder


class Echo:
    """Repeats what was said, word by word, and counts the messages that it was given."""

    def __init__(self, name: str = "echo", before: str = "") -> None:
        self.name, self._before = name, before
        self.heard: list[list[str]] = []

    def answer(self, messages: list[Message], give: Callable[[str], None], stopped: Callable[[], bool]) -> Reply:
        self.heard.append([f"{message['role']}: {message['content']}" for message in messages])
        text = self._before + messages[-1]["content"]
        for word in text.split(" "):
            give(word + " ")
        return Reply(text, False)


def test_a_conversation_has_its_earlier_turns_until_it_begins_anew(capsys: pytest.CaptureFixture[str]) -> None:
    echo = Echo()
    converse([echo], iter(["one", "", "two", " /clear", "three", "/exit", "four"]), system="be brief")
    assert echo.heard == [
        ["system: be brief", "user: one"],
        ["system: be brief", "user: one", "assistant: one", "user: two"],
        ["system: be brief", "user: three"],
    ]
    assert [line.strip() for line in capsys.readouterr().out.split("\n\n")] == ["one", "two", "three", ""]


def test_two_policies_have_their_own_histories_and_stand_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = Echo("first"), Echo("second", before="I say ")
    converse([first, second], iter(["a b", "c"]))
    assert first.heard[1] == ["user: a b", "assistant: a b", "user: c"]
    assert second.heard[1] == ["user: a b", "assistant: I say a b", "user: c"]
    rows = [[cell.strip() for cell in row.split(" | ")] for row in capsys.readouterr().out.splitlines() if row]
    assert rows == [["first", "second"], ["a b", "I say a b"], ["first", "second"], ["c", "I say c"]]


def test_columns_hold_long_texts_of_different_lengths(capsys: pytest.CaptureFixture[str]) -> None:
    columns, long = Columns(["one", "two"]), "word " * 40
    for part in ("short", "er\n", "end"):
        columns.add(0, part)
    for k in range(0, len(long), 3):
        columns.add(1, long[k : k + 3])
    columns.end(0)
    columns.end(1)
    rows = capsys.readouterr().out.splitlines()[1:]
    left, right = ([row.ljust(200).split(" | ")[side].strip() for row in rows] for side in (0, 1))
    assert [text for text in left if text] == ["shorter", "end"]
    assert " ".join(right).split() == ["word"] * 40
    assert max(map(len, rows)) <= 110


HOSTILE = "\x1b]0;owned\x07\x1b[2Jyes\x9b31m\u202eno\r"


@pytest.mark.parametrize("talkers", [1, 2])
def test_a_policy_cannot_act_on_the_terminal(talkers: int, capsys: pytest.CaptureFixture[str]) -> None:
    converse([Echo(before=HOSTILE) for _ in range(talkers)], iter(["hello\tyou"]))
    out = capsys.readouterr().out
    assert not set("\x1b\x07\x9b\u202e\r\t") & set(out)
    assert out.count("\\x1b[2Jyes") == talkers


class Endless(Echo):
    """Answers until it is stopped. Presses Ctrl-C so many times while it does."""

    def __init__(self, presses: int) -> None:
        super().__init__()
        self._presses = presses

    def answer(self, messages: list[Message], give: Callable[[str], None], stopped: Callable[[], bool]) -> Reply:
        self.heard.append([])
        give("on and on")
        os.kill(os.getpid(), signal.SIGINT)
        while not stopped():
            pass
        for _ in range(self._presses - 1):
            os.kill(os.getpid(), signal.SIGINT)
        return Reply("on and on", False)


def test_ctrl_c_stops_an_answer_and_the_conversation_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    endless = Endless(1)
    converse([endless], iter(["one", "two"]))
    assert len(endless.heard) == 2
    assert capsys.readouterr().out.count("on and on") == 2
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_where_nobody_answers_ends_the_command() -> None:
    echo = Echo()

    def said() -> Iterator[str]:
        yield "one"
        signal.raise_signal(signal.SIGINT)
        yield "two"

    converse([echo], said())
    assert len(echo.heard) == 1


def test_the_command_answers_each_line_of_standard_input_as_the_engine_does(
    spa_here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    from spa_recipes.data.chat import Renderer, load_tokenizer
    from spa_recipes.generation.requests import Request
    from spa_recipes.generation.transformers import sample
    from spa_recipes.models.loading import for_inference, load_causal_lm
    from spa_recipes.recipe.schema import Model

    judge_inputs(tmp_path, 1)
    monkeypatch.setattr("sys.stdin", io.StringIO("why is cheese good ?\n"))
    done = spa_here("chat", "policy", "--against", "reference", "--temperature", "0", "--max-tokens", "8")
    assert done.code == 0, done.err
    renderer = Renderer(load_tokenizer(tmp_path / "policy"), max_prompt_length=100, max_length=120)
    ids = renderer.prompt_ids([{"role": "user", "content": "why is cheese good ?"}])
    expected = []
    for name in ("policy", "reference"):
        model = for_inference(load_causal_lm, Model(model_name_or_path=str(tmp_path / name)))
        (completion,) = sample(
            model,
            [Request("p", 0, ids)],
            temperature=0,
            top_p=1,
            max_tokens=8,
            stop_ids=renderer.stop_ids,
            seed_of=lambda request: 0,
            batch_size=1,
        )
        expected.append(renderer.decode(completion.response_ids))
    heading, *rows = [row for row in done.out.splitlines() if row]
    assert [cell.strip() for cell in heading.split(" | ")] == ["policy", "reference"]
    cells = [row.ljust(200).split(" | ") for row in rows]
    assert [" ".join(" ".join(row[side] for row in cells).split()) for side in (0, 1)] == expected
    assert spa_here("chat", "./none").err.count("\n") == 1


def test_the_command_runs_no_code_that_a_model_names(spa_here: Any, tmp_path: Path) -> None:
    model_folder(tmp_path / "kernel", {"text_config": {"attn_implementation": "org/kernel"}})
    done = spa_here("chat", "kernel")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "compiled code on the Hub (attn_implementation: org/kernel); take the line out of config.json" in done.err
    model_folder(tmp_path / "own", REMOTE)
    done = spa_here("chat", "own")
    assert (done.code, done.err.count("\n")) == (3, 1)
