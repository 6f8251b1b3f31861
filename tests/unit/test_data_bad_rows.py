"""Malformed rows, unknown forms, and columns that a recipe names."""

import json
from pathlib import Path

import pytest

from spa_recipes.data.sources import read_pairs
from spa_recipes.errors import DataError
from spa_recipes.recipe.schema import Columns
from tests.kit.data import GOOD, error_of, source, whole
from tests.kit.data_forms import assistant, canonical, system, user, write_jsonl

BAD_ROWS = {
    "missing column": (GOOD, {"prompt": "What?", "chosen": "That."}, "no column `rejected`"),
    "null": (GOOD, {**GOOD, "rejected": None}, "`rejected` is null"),
    "null prompt": (whole(), {**whole(), "prompt": None}, "`prompt` is null"),
    "empty prompt": (GOOD, {**GOOD, "prompt": " \n"}, "message 1 of the prompt is empty"),
    "empty response": (GOOD, {**GOOD, "chosen": ""}, "the chosen response is empty"),
    "equal": (GOOD, {**GOOD, "rejected": "That."}, "the chosen response equals the rejected one"),
    "number": (GOOD, {**GOOD, "chosen": 3}, "`chosen` is neither text nor messages, where a string is expected"),
    "half a character": (GOOD, {**GOOD, "chosen": "a\ud83d"}, "the chosen response holds half a surrogate pair"),
    "another form": (GOOD, whole(), "`chosen` is a list of messages, where a string is expected (TRL explicit"),
    "one more column": (
        {k: v for k, v in whole().items() if k != "prompt"},
        whole(),
        "`prompt` is set, but the first rows have none",
    ),
    "no assistant": (whole(), whole(chosen=[user("What?")]), "`chosen` ends with a message of user, not of assistant"),
    "unknown role": (
        whole(),
        whole(chosen=[{"role": "narrator", "content": "x"}, assistant("y")]),
        "message 1 of `chosen` is of 'narrator', not of system, user (human), assistant (gpt) or tool",
    ),
    "null content": (
        whole(),
        whole(chosen=[user("What?"), {"role": "assistant", "content": None}]),
        "no text but null",
    ),
    "parts as content": (
        whole(),
        whole(chosen=[user("What?"), {"role": "assistant", "content": [{"type": "image", "image": "x.png"}]}]),
        "message 2 of `chosen` holds a block of image, where only text is read",
    ),
    "not messages": (whole(), whole(chosen=[user("What?"), "That."]), "message 2 of `chosen` is not an object"),
    "no messages": (whole(), whole(chosen=[]), "`chosen` is an empty list, where a list of messages is expected"),
    "disagreeing prompt": (whole(), whole(prompt="Who?"), "`prompt` is not what the user says"),
    "different prefixes": (
        whole(),
        whole(rejected=[user("Who?"), assistant("No.")]),
        "`chosen` and `rejected` differ before their last message (at message 1)",
    ),
    "longer prefix": (
        whole(),
        whole(rejected=[user("What?"), assistant("No."), user("Sure?"), assistant("Yes.")]),
        "`chosen` and `rejected` differ before their last message (in length)",
    ),
    "late system": (
        whole(),
        whole(
            chosen=[user("What?"), system("Hm"), user("?"), assistant("That.")],
            rejected=[user("What?"), system("Hm"), user("?"), assistant("No.")],
        ),
        "message 2 of the prompt is of system, which may only come first",
    ),
    "answer after answer": (
        whole(),
        whole(
            chosen=[user("What?"), assistant("a"), assistant("b")],
            rejected=[user("What?"), assistant("a"), assistant("c")],
        ),
        "the prompt ends with a message of assistant, not of user",
    ),
    "three outputs": (
        {"instruction": "What?", "output": ["a", "b"]},
        {"instruction": "What?", "output": ["a", "b", "c"]},
        "`output` holds 3 responses, not 2",
    ),
    "bad history": (
        {"instruction": "What?", "output": ["a", "b"]},
        {"instruction": "What?", "output": ["a", "b"], "history": [["a"]]},
        "item 1 of `history` is not a list of an instruction and a response",
    ),
    "two systems": (
        {"conversations": [{"from": "human", "value": "x"}], "chosen": "a", "rejected": "b"},
        {
            "conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "x"}],
            "chosen": "a",
            "rejected": "b",
            "system": "t",
        },
        "there are two system messages",
    ),
    "two completions": (
        {"prompt": [user("What?")], "chosen": [assistant("a")], "rejected": [assistant("b")]},
        {"prompt": [user("What?")], "chosen": [assistant("a"), assistant("c")], "rejected": [assistant("b")]},
        "`chosen` holds 2 messages, where one of assistant is expected",
    ),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_malformed_row_is_named_or_skipped(case: str, tmp_path: Path) -> None:
    good, bad, message = BAD_ROWS[case]
    path = tmp_path / "data.json"
    path.write_text(json.dumps([good, bad, good]))
    error = error_of(read_pairs, path)
    assert isinstance(error, DataError)
    assert str(error).startswith(f"{path}, row 2: ")
    assert message in error.what
    assert "on_bad_row: skip" in error.fix

    loaded = read_pairs(source(path, on_bad_row="skip"))
    assert [row["row"] for row in loaded.rows] == [1, 3]
    assert loaded.skipped == [(2, error.what)]


def test_lines_that_are_not_json_are_skipped_too(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, [GOOD, GOOD])
    path.write_bytes(path.read_bytes() + b'{"prompt": "\xff"}\n\n[]\n{"prompt": "x", "cho')
    assert str(error_of(read_pairs, path)).startswith(f"{path}:3: not UTF-8 at byte ")
    loaded = read_pairs(source(path, on_bad_row="skip"))
    assert [row["row"] for row in loaded.rows] == [1, 2]
    assert [number for number, _ in loaded.skipped] == [3, 5, 6]
    assert "cut off" in loaded.skipped[2][1]


def test_a_bad_first_row_does_not_hide_the_form(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, [{"prompt": None, "chosen": [], "rejected": []}, whole(), GOOD, whole()])
    assert str(error_of(read_pairs, path)).startswith(f"{path}:1: `prompt` is null")
    loaded = read_pairs(source(path, on_bad_row="skip"))
    assert [row["row"] for row in loaded.rows] == [2, 4]


def test_nothing_usable_is_an_error_even_when_skipping(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, [{**GOOD, "chosen": ""}] * 3)
    error = error_of(read_pairs, path, on_bad_row="skip")
    assert error.what == "none of the 3 rows is usable; row 1: the chosen response is empty"


def test_an_unknown_form_lists_what_is_there_and_what_is_accepted(tmp_path: Path) -> None:
    error = error_of(read_pairs, write_jsonl(tmp_path, [{"question": "x", "best": "y", "n": 1}]))
    assert "question (a string), best (a string), n (neither text nor messages)" in error.what
    assert "; prompt, chosen, rejected; " in error.fix
    assert "or name the columns with `columns`" in error.fix
    # A transcript without an answer is no pair.
    error_of(read_pairs, write_jsonl(tmp_path, [{"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: a"}]))


def test_columns_override_the_detection(tmp_path: Path) -> None:
    row = {"question": "What?", "best": "That.", "worst": "No.", "prompt": [user("not this")], "chosen": 1}
    path = write_jsonl(tmp_path, [row])
    columns = Columns(prompt="question", chosen="best", rejected="worst")
    loaded = read_pairs(source(path, columns=columns))
    assert loaded.rows == [canonical([user("What?")], "That.", "No.", row=1)]
    assert loaded.columns == ["question", "best", "worst"]
    error = error_of(read_pairs, path, columns=Columns(prompt="questoin"))
    assert "no column `questoin`, which `columns.prompt` names; found: question (a string), best" in error.what


def test_an_override_of_one_column(tmp_path: Path) -> None:
    row = {"instruction": "not this", "text": "What?", "chosen": "That.", "rejected": "No."}
    loaded = read_pairs(source(write_jsonl(tmp_path, [row]), columns=Columns(prompt="text")))
    assert loaded.rows == [canonical([user("What?")], "That.", "No.", row=1)]


def test_half_a_surrogate_pair_in_a_system_message_is_a_malformed_row(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    bad = {**GOOD, "prompt": [{"role": "system", "content": "\ud800"}, {"role": "user", "content": "What?"}]}
    good = {**GOOD, "prompt": [{"role": "system", "content": ""}, {"role": "user", "content": "What?"}]}
    path.write_text("".join(json.dumps(row) + "\n" for row in (good, bad)))
    error = error_of(read_pairs, path)
    assert error.where.endswith("d.jsonl:2")
    assert error.what == "message 1 of the prompt holds half a surrogate pair at character 1"
    assert [row["row"] for row in read_pairs(source(path, on_bad_row="skip")).rows] == [1]


def test_a_source_that_cannot_be_read_to_its_end_is_reported_before_a_malformed_row(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("prompt,chosen,rejected\nWhat?,,No.\n" + "What?,That.,No.\n" * 40 + 'What?,"That.,No.\n')
    assert "not CSV" in error_of(read_pairs, path).what
    path.write_text("prompt,chosen,rejected\nWhat?,,No.\n" + "What?,That.,No.\n" * 40)
    assert error_of(read_pairs, path).what == "the chosen response is empty"
