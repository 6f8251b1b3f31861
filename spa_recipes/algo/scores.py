"""Scores that a language model gives to single answers in words, and the rewards that follow from them."""

import re
from collections.abc import Sequence

MAX_SCORE = 100.0
"""A larger number is no score: a year, say."""

_NUMBER = r"\d+(?:\.\d+)?"
_BRACKETED = re.compile(rf"\[\[\s*({_NUMBER})\s*\]\]")
_ALONE = re.compile(rf"[^\w.-]*({_NUMBER})\W*")


def parse_score(text: str) -> float | None:
    """The score of a text; None where it has none.

    That is the last number in double brackets in it, such as `[[4]]`. A text without any is a score if it is nothing
    but a number, with white space and punctuation around it. A score is from 0 to MAX_SCORE.
    """
    bracketed = _BRACKETED.findall(text)
    alone = None if bracketed else _ALONE.fullmatch(text)
    found = bracketed[-1] if bracketed else alone[1] if alone else None
    return None if found is None or float(found) > MAX_SCORE else float(found)


def mean_scores(scores: Sequence[Sequence[float | None]]) -> list[float]:
    """The reward of each answer to a prompt: the mean of its scores.

    Args:
        scores: per answer those of its replies, None for a reply without one. An answer without any gets the mean of
            the other answers, so that nothing is preferred to it or against it; 0 where no answer has any.
    """
    means = [_mean([score for score in replies if score is not None]) for replies in scores]
    middle = _mean([mean for mean in means if mean is not None])
    return [mean if mean is not None else middle if middle is not None else 0.0 for mean in means]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
