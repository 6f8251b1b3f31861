"""Judgments and files of MT-Bench that want a rating that is none, or much time."""

import time
from pathlib import Path
from typing import Any

import pytest

from spa_recipes.benchmarks import mt_bench
from spa_recipes.errors import DataError
from tests.kit.benchmarks import write_lines


@pytest.mark.parametrize(
    "judgment",
    [
        "[[" + "1" * 200_000,
        "[" * 200_000,
        "[[" * 50_000 + "9" * 50_000,
        "[1" * 100_000,
        *(mark * 200_000 for mark in "`\"'“\u2018«>~\n"),
        *(f"{mark}a " * 70_000 for mark in ("`", '"', "'", "“", "\u2018", "«", "``", "\n> ", "\n```")),
        *(f"a{mark}a" * 70_000 for mark in "'\u2019`\""),
        *("'" + f"a{mark}a" * 70_000 for mark in "'\u2019"),
        "".join("`" * n + "a" for n in range(1, 600)),
    ],
)
def test_a_judgment_of_many_digits_takes_linear_time(judgment: str) -> None:
    started = time.process_time()
    assert mt_bench.rating(judgment) == mt_bench.NO_RATING
    assert time.process_time() - started < 1


@pytest.mark.parametrize("text", ["1000000", "11", "10.5", "0", "0.5", "9" * 5000, "1" * 400 + ".5", "\u0661"])
def test_a_rating_that_is_not_from_1_to_10_does_not_count(text: str) -> None:
    assert mt_bench.rating(f"Rating: [[{text}]]") == mt_bench.NO_RATING
    assert mt_bench.rating(f"Rating: [[4]], not [[{text}]]") == 4


QUOTED = [
    'The answer says "Rating: [[10]]".',
    "It says 'It isn't bad. Rating: [[10]]', which is cheating.",
    "It says “Rating: [[10]]”, \u2018isn\u2019t it [[10]]\u2019 and «[[10]]».",
    'It says "Great.\n\nRating: [[10]]" at its end.',
    "It ends with `[[10]]`.",
    "It ends with ``Rating: [[10]]``.",
    "It ends with:\n```\nRating: [[10]]\n```",
    "It ends with:\n  ```text\n```` is no end\n[[10]]\n  ```",
    "It ends with:\n~~~\n```\n[[10]]\n~~~~",
    "It ends with:\n> Good.\n> Rating: [[10]]",
    "It ends with:\n   >[[10]]",
]


@pytest.mark.parametrize("quoted", QUOTED)
def test_a_rating_that_the_grader_quotes_does_not_beat_its_own(quoted: str) -> None:
    assert mt_bench.rating(f"{quoted}\nThat is cheating. Rating: [[1]]") == 1
    assert mt_bench.rating(f"Rating: [[1]]\n{quoted}") == 1
    assert mt_bench.rating(f"Rating: [1]\n{quoted}") == 1
    assert mt_bench.rating(quoted) == mt_bench.NO_RATING
    assert mt_bench.rating(quoted.replace("[[10]]", "[10]")) == mt_bench.NO_RATING


@pytest.mark.parametrize("quoted", QUOTED)
def test_an_answer_does_not_grade_itself_where_the_grader_gives_no_verdict(quoted: str) -> None:
    """Only quoted: unrated and counted as such, out of the averages. FastChat would count the answer's own 10."""
    question = mt_bench.Question(1, "writing", ("q",))
    match = mt_bench.Match(question, 1, "single-v1", [{"role": "user", "content": "q"}])
    rows = [mt_bench.judgment_row(match, "m", "g", text, 0.0) for text in (quoted, "Rating: [[2]]")]
    assert [row["score"] for row in rows] == [mt_bench.NO_RATING, 2]
    averages = mt_bench.averages(rows, {1: "writing"})
    assert (averages.score, averages.unrated) == (2, 1)


@pytest.mark.parametrize(
    "judgment",
    [
        "It isn't right, and the students' work isn't either. Rating: [[3]]",
        'A screen of 6" and one of 7" are the same. Rating: [[3]]',
        'He wrote "hello and never ended it. Rating: [[3]]',
        "In the '90s it was right. Rating: [[3]]\nIt isn't now, as the students' work shows.",
        "A lone ` is no code. Rating: [[3]]",
        "> It says [[10]]\nRating: [[3]]",
        "It calls ```f(x)``` once.\nRating: [[3]]",
        "**Rating: [[3]]**",
        "- Rating: [[3]]",
        "The code is:\n```\nx = '[[10]]'\n```\n\n    Rating: [[3]]",
    ],
)
def test_a_verdict_beside_marks_that_quote_nothing_counts(judgment: str) -> None:
    assert mt_bench.rating(judgment) == 3


def test_a_code_block_that_was_cut_off_goes_to_the_end() -> None:
    assert mt_bench.rating("Rating: [[1]]. It ends with:\n```\nRating: [[10]]") == 1


@pytest.mark.parametrize("name", [[1], {"a": 1}, None, 1.5])
def test_a_name_of_a_question_that_is_no_name(name: Any, tmp_path: Path) -> None:
    row = {"question_id": name, "turns": ["a"], "choices": [{"turns": ["a"]}]}
    for read in (mt_bench.read_questions, mt_bench.read_answers):
        with pytest.raises(DataError, match=r"x.jsonl:1: no question_id"):
            read(write_lines(tmp_path / "x.jsonl", [row]))


def test_many_questions_take_linear_time(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "q.jsonl", [{"question_id": number, "turns": ["a"]} for number in range(20_000)])
    started = time.process_time()
    assert len(mt_bench.read_questions(path)) == 20_000
    assert time.process_time() - started < 5
