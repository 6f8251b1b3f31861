"""Cells that hold something else than they seem to: decoded where the whole column has it, else the row is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from spa_recipes.data.sources import read_candidates, read_conversations, read_pairs, read_prompts
from tests.kit.data import GOOD, error_of, source
from tests.kit.data_forms import assistant, user, write_csv, write_jsonl

MESSAGES = json.dumps([user("What?"), assistant("That.")])
PYTHON = str([user("What?"), assistant("That.")])


def test_messages_as_json_text_are_decoded_in_every_kind_of_file(tmp_path: Path) -> None:
    rows = [{"messages": MESSAGES}] * 3
    for path in (write_jsonl(tmp_path, rows), write_csv(tmp_path, rows)):
        loaded = read_conversations(source(path))
        assert loaded.rows[2]["messages"] == [user("What?"), assistant("That.")]
        assert loaded.remarks == ["`messages`: decoded from JSON"]


@pytest.mark.parametrize("place", [0, 1, 60])
@pytest.mark.parametrize(("text", "words"), [(MESSAGES, "JSON text"), (PYTHON, "as Python prints them")])
def test_messages_in_the_text_of_any_row_are_no_answer(text: str, words: str, place: int, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [GOOD] * 61
    rows[place] = {**GOOD, "chosen": text}
    for path in (write_jsonl(tmp_path, rows), write_csv(tmp_path, rows)):
        error = error_of(read_pairs, path)
        assert words in error.what
        assert str(place + 1) in error.where


@pytest.mark.parametrize("text", [PYTHON, "['That.']", "{'role': 'user', 'content': 'x'}"])
def test_a_column_of_what_python_prints_is_refused(text: str, tmp_path: Path) -> None:
    error = error_of(read_pairs, write_jsonl(tmp_path, [{**GOOD, "chosen": text}] * 2))
    assert error.what.startswith("column chosen holds lists or objects as Python prints them")


def test_answers_that_are_json_lists_stay_text_where_prompts_are_text(tmp_path: Path) -> None:
    rows = [{"prompt": "List two.", "chosen": '["a", "b"]', "rejected": '["c"]'}] * 3
    for path in (write_jsonl(tmp_path, rows), write_csv(tmp_path, rows)):
        assert read_pairs(source(path)).rows[0]["chosen"][0]["content"] == '["a", "b"]'


@pytest.mark.parametrize("place", [0, 1, 60])
@pytest.mark.parametrize("text", ['["What?"]', "['What?', \"Isn't it?\"]", "['What?'\n 'Sure?']"])
@pytest.mark.parametrize("name", ["prompt", "instruction"])
def test_a_list_as_text_in_any_row_is_no_prompt(name: str, text: str, place: int, tmp_path: Path) -> None:
    rows = [{name: f"What {i}?", "chosen": "good", "rejected": "bad"} for i in range(61)]
    rows[place][name] = text
    for path in (write_jsonl(tmp_path, rows), write_csv(tmp_path, rows)):
        for read in (read_pairs, read_prompts, read_candidates):
            error = error_of(read, path)
            assert f"`{name}` holds a list of strings as text" in error.what
            assert str(place + 1) in error.where
        assert len(read_pairs(source(path, on_bad_row="skip")).rows) == 60


@pytest.mark.parametrize("place", [0, 60])
def test_answers_that_are_lists_as_text_are_counted_in_the_whole_column(place: int, tmp_path: Path) -> None:
    rows = [{"prompt": f"List {i}.", "chosen": "good", "rejected": "bad"} for i in range(61)]
    rows[place] |= {"chosen": "['a', 'b']", "rejected": '["a"]'}
    rows[30] |= {"rejected": '["c"]', "chosen": "['a'] + ['b']"}
    said = [
        "`chosen`: 1 row holds a list of strings as text, which stays text",
        "`rejected`: 2 rows hold a list of strings as text, which stays text",
    ]
    for path in (write_jsonl(tmp_path, rows), write_csv(tmp_path, rows)):
        assert read_pairs(source(path)).remarks == said


def test_several_turns_as_a_list_of_strings_are_refused(tmp_path: Path) -> None:
    one = {"prompt": '["What?"]', "response_a": '["a"]', "response_b": '["b"]', "winner": "model_a"}
    more = {"prompt": '["What?", "Sure?"]', "response_a": '["a", "x"]', "response_b": '["b", "y"]', "winner": "model_b"}
    path = write_jsonl(tmp_path, [one, more])
    assert "column prompt holds 2 strings: several turns" in error_of(read_pairs, path).what
    assert [row["responses"] for row in read_candidates(source(path, on_bad_row="skip")).rows] == [["a", "b"]]


def test_one_number_among_texts_is_a_malformed_row(tmp_path: Path) -> None:
    assert (
        "`prompt` is neither text nor messages"
        in error_of(read_pairs, write_jsonl(tmp_path, [GOOD, {**GOOD, "prompt": 3}])).what
    )
    path = write_jsonl(tmp_path, [{**GOOD, "prompt": 3}, {**GOOD, "prompt": 4.5}])
    assert "columns of no known form: prompt (neither text nor messages)" in error_of(read_pairs, path).what
    path = write_jsonl(tmp_path, [{**GOOD, "prompt": 3}] * 20 + [{**GOOD, "prompt": 4.5}])
    assert "column prompt is not a whole number, as it is in the first rows" in error_of(read_pairs, path).what


@pytest.mark.parametrize(
    "text",
    [
        "\n\nHuman: a\n\nAssistant: b",
        "Yes.\n\nHuman: more?\n\nAssistant: no",
        "### Instruction:\na\n### Response:\nb",
        "USER: a\nASSISTANT: b",
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb",
    ],
)
def test_a_transcript_is_not_one_answer(text: str, tmp_path: Path) -> None:
    assert "transcript" in error_of(read_pairs, write_jsonl(tmp_path, [GOOD, {**GOOD, "chosen": text}])).what
    row = {"prompt": "a", "completion": text}
    assert (
        "transcript"
        in error_of(read_conversations, write_jsonl(tmp_path, [{"prompt": "a", "completion": "b"}, row])).what
    )


@pytest.mark.parametrize("text", ["A USER: is a role.", "Say ### Instruction once.", "[INST] alone"])
def test_marks_of_a_transcript_inside_an_answer_are_text(text: str, tmp_path: Path) -> None:
    assert len(read_pairs(source(write_jsonl(tmp_path, [{**GOOD, "chosen": text}]))).rows) == 1
