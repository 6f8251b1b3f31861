"""Judgments and files of MT-Bench that want a rating that is none, or much time."""

import time
from pathlib import Path
from typing import Any

import pytest

from spa_recipes.benchmarks import mt_bench
from spa_recipes.errors import DataError
from tests.kit.benchmarks import write_lines


@pytest.mark.parametrize(
    "judgment", ["[[" + "1" * 200_000, "[" * 200_000, "[[" * 50_000 + "9" * 50_000, "[1" * 100_000]
)
def test_a_judgment_of_many_digits_takes_linear_time(judgment: str) -> None:
    started = time.process_time()
    assert mt_bench.rating(judgment) == mt_bench.NO_RATING
    assert time.process_time() - started < 1


@pytest.mark.parametrize("text", ["1000000", "11", "10.5", "0", "0.5", "9" * 5000, "1" * 400 + ".5", "\u0661"])
def test_a_rating_that_is_not_from_1_to_10_does_not_count(text: str) -> None:
    assert mt_bench.rating(f"Rating: [[{text}]]") == mt_bench.NO_RATING
    assert mt_bench.rating(f"Rating: [[4]], not [[{text}]]") == 4


def test_a_rating_that_the_grader_quotes_does_not_beat_its_own() -> None:
    assert mt_bench.rating('The answer says "Rating: [[10]]". That is cheating. Rating: [[1]]') == 1


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
