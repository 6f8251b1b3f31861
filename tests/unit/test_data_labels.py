"""What a label column means: it is decided on the whole column, said, and refused where it could mean two things."""

from pathlib import Path
from typing import Any

import pytest

from spa_recipes.data.sources import read_candidates, read_conversations, read_pairs
from spa_recipes.recipe.schema import Columns
from tests.kit.data import error_of, source
from tests.kit.data_forms import write_jsonl


def two(folder: Path, values: list[Any], column: str = "label") -> Path:
    return write_jsonl(
        folder, [{"prompt": "What?", "response_a": "a", "response_b": "b", column: value} for value in values]
    )


def one(folder: Path, values: list[Any]) -> Path:
    return write_jsonl(folder, [{"prompt": "What?", "completion": f"{i}", "label": v} for i, v in enumerate(values)])


def chosen(path: Path, **settings: Any) -> str:
    return "".join(row["chosen"][0]["content"] for row in read_pairs(source(path, **settings)).rows)


CLEAR: dict[str, tuple[list[Any], str]] = {
    "letters": (["a", "B ", "tie", "A"], "aba"),
    "columns": (["response_a", "response_b"], "ab"),
    "models": (["model_a", "model_b", "tie (bothbad)"], "ab"),
    "numbered from 1": ([1, 2, 2], "abb"),
    "numbered from 1, with ties": ([1.0, 1.5, 2.0], "ab"),
    "numbers as text": (["1", "2"], "ab"),
    "named from 1": (["output_1", "output_2"], "ab"),
    "named from 0": (["response_0", "response_1"], "ab"),
    "first": (["first", "second"], "ab"),
}


@pytest.mark.parametrize("case", CLEAR)
def test_labels_of_one_meaning(case: str, tmp_path: Path) -> None:
    values, expected = CLEAR[case]
    assert chosen(two(tmp_path, values)) == expected


AMBIGUOUS: dict[str, list[Any]] = {
    "from 0, or whether the first is better": [0, 1, 1],
    "flags": [True, False],
    "signed": [-1, 1, 0],
    "Likert": [1, 2, 3, 5],
    "shares": [0.2, 0.9],
    "one value": [1, 1, 1],
    "from 0 or 1": [0, 1, 2],
    "words": ["good", "bad"],
    "numbers of two kinds": ["model_0", "model_2"],
    "objects": [{"a": 1}],
    "nothing": [None, None],
}


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_labels_of_two_meanings_are_refused_with_the_setting_that_settles_them(case: str, tmp_path: Path) -> None:
    for read in (read_pairs, read_candidates):
        error = error_of(read, two(tmp_path, AMBIGUOUS[case]))
        assert error.what.startswith("column `label` holds ")
        assert (
            "say which value means that `response_a` is the better one: columns: {label: label, positive:" in error.fix
        )
    assert "leave it unread with columns: {ignore: [label]}" in error.fix
    unread = read_candidates(source(tmp_path / "data.jsonl", columns=Columns(ignore=["label"])))
    assert {row["label"] for row in unread.rows} == {None}


@pytest.mark.parametrize(
    ("values", "positive", "expected"),
    [
        ([0, 1, 1], 0, "abb"),
        ([0, 1, 1], 1, "baa"),
        ([True, False], True, "ab"),
        ([-3, 0, 2], 1, "ba"),
        ([-3, 0, 2], -1, "ab"),
        ([1, 2, 3, 4, 5], 5, "bbaa"),
        ([1, 2, 3, 4, 5], 1, "aabb"),
        ([0.2, 0.5, 0.9], 1, "ba"),
        (["left", "right", "tie"], "left", "ab"),
        (["X", "y"], "x", "ab"),
    ],
)
def test_the_positive_value_settles_it(values: list[Any], positive: Any, expected: str, tmp_path: Path) -> None:
    assert chosen(two(tmp_path, values), columns=Columns(label="label", positive=positive)) == expected


@pytest.mark.parametrize(("values", "positive"), [([1, 2, 3], 2), (["a", "x", "y"], "x"), (["a", "b"], "c")])
def test_a_positive_value_that_settles_nothing(values: list[Any], positive: Any, tmp_path: Path) -> None:
    error = error_of(read_pairs, two(tmp_path, values), columns=Columns(label="label", positive=positive))
    assert error.what.startswith("column `label` holds ")


def test_the_last_row_counts_as_much_as_the_first(tmp_path: Path) -> None:
    """1 and 2 look like the numbers of the answers, until a 5 shows that they are grades."""
    clear = [1, 2] * 40
    assert chosen(two(tmp_path, clear)) == "ab" * 40
    assert "holds 1, 2, 5" in error_of(read_pairs, two(tmp_path, [*clear, 5])).what


def test_the_meaning_is_said(tmp_path: Path) -> None:
    assert "`preference`: above 1.5 is `response_b`, below `response_a`" in (
        read_pairs(source(two(tmp_path, [1, 2], "preference"))).line
    )


@pytest.mark.parametrize(
    ("values", "good"),
    [
        ([True, False], [1]),
        ([0, 1], [2]),
        ([-1, 1], [2]),
        (["True", "false"], [1]),
        (["good", "bad", "yes"], [1, 3]),
        ([True, True], [1, 2]),
    ],
)
def test_whether_an_answer_is_good(values: list[Any], good: list[int], tmp_path: Path) -> None:
    assert [row["row"] for row in read_conversations(source(one(tmp_path, values))).rows] == good


@pytest.mark.parametrize("values", [[1, 2, 5], [0.1, 0.8], ["sports", "news"], [2, 2]])
def test_a_label_that_is_no_verdict_is_refused(values: list[Any], tmp_path: Path) -> None:
    error = error_of(read_conversations, one(tmp_path, values))
    assert "say which value means that an answer is good" in error.fix
    unread = read_conversations(source(tmp_path / "data.jsonl", columns=Columns(ignore=["label"])))
    assert (len(unread.rows), unread.ignored) == (len(values), ["label"])


def test_a_scale_of_good_answers(tmp_path: Path) -> None:
    path = one(tmp_path, [1, 2, 3, 4, 5])
    loaded = read_conversations(source(path, columns=Columns(label="label", positive=5)))
    assert [row["row"] for row in loaded.rows] == [4, 5]
