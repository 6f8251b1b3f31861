"""Scores of single answers in words: how they are read, and the rewards that follow."""

import pytest

from spa_recipes.algo.scores import mean_scores, parse_score


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("It is fine.\n[[4]]", 4.0),
        ("first I thought [[2]], but no: [[3.5]].", 3.5),
        ("[[ 0 ]]", 0.0),
        ("5", 5.0),
        (" **4.5**.", 4.5),
        ("[[100]]", 100.0),
        ("[[2024]]", None),
        ("-3", None),
        ("4 points", None),
        ("[[four]]", None),
        ("[[A]]", None),
        ("", None),
    ],
)
def test_a_score_is_the_last_number_in_brackets_or_the_whole_reply(text: str, score: float | None) -> None:
    assert parse_score(text) == score


def test_a_reward_is_the_mean_of_the_scores_that_there_are() -> None:
    assert mean_scores([[4.0, 5.0], [None, 1.0]]) == [4.5, 1.0]


def test_an_answer_without_a_score_is_neither_preferred_nor_rejected() -> None:
    assert mean_scores([[5.0], [None], [2.0]]) == [5.0, 3.5, 2.0]
    assert mean_scores([[None], []]) == [0.0, 0.0]
