"""Verdicts of a language model that compares two answers in words, and the rewards that follow from them.

Each pair of answers is compared twice, once in either order, as such models tend to prefer a place.
"""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

Verdict = Literal["first", "second", "tie", "unparsed"]
"""Which of the two places is better; `unparsed` is a text without a verdict."""

_PLACES: dict[str, Verdict] = {"A": "first", "B": "second", "C": "tie"}
_BRACKETED = re.compile(r"\[\[([ABC])\]\]")
_ALONE = re.compile(r"\W*([ABC])\W*")


class Comparison(NamedTuple):
    """Two answers by their index, in the order in which they were shown, and the verdict on them."""

    first: int
    second: int
    verdict: Verdict


class Figures(NamedTuple):
    """How a judge judged.

    Attributes:
        order_disagreement: share of pairs on which the two orders do not give the same winner (or the same tie), of
            those with two readable verdicts; None where there are none.
        first_place: share of verdicts for the first place, of those for a place; None where there are none.
        ties: share of verdicts that are ties.
        unparsed: share of texts without a verdict.
    """

    order_disagreement: float | None
    first_place: float | None
    ties: float
    unparsed: float


def parse_verdict(text: str) -> Verdict:
    """The verdict of a text.

    That is the last `[[A]]`, `[[B]]` or `[[C]]` in it: A is the first place, B the second, C a tie. A text without any
    of these is a verdict if it is nothing but one of the three letters, with white space and punctuation around it.
    Letters are capitals.
    """
    bracketed = _BRACKETED.findall(text)
    if bracketed:
        return _PLACES[bracketed[-1]]
    alone = _ALONE.fullmatch(text)
    return _PLACES[alone[1]] if alone else "unparsed"


def rewards(answers: int, comparisons: Sequence[Comparison]) -> list[float]:
    """Share of its comparisons that each answer won, in [0, 1]; a tie or an unparsed text is half a win for both.

    Args:
        answers: how many there are.
        comparisons: among them, in any order; an answer that is in none of them gets one half.
    """
    won, seen = [0.0] * answers, [0] * answers
    for first, second, verdict in comparisons:
        points = {"first": 1.0, "second": 0.0}.get(verdict, 0.5)
        won[first] += points
        won[second] += 1.0 - points
        seen[first] += 1
        seen[second] += 1
    return [points / count if count else 0.5 for points, count in zip(won, seen, strict=True)]


def figures(pairs: Sequence[tuple[Verdict, Verdict]]) -> Figures:
    """How a judge judged.

    Args:
        pairs: at least one; of each the verdict in one order of its answers, and that in the other order.

    Raises:
        ValueError: no pairs.
    """
    if not pairs:
        raise ValueError("no figures of no pairs")
    verdicts = [verdict for pair in pairs for verdict in pair]
    readable = [pair for pair in pairs if "unparsed" not in pair]
    disagreeing = [pair for pair in readable if pair not in (("first", "second"), ("second", "first"), ("tie", "tie"))]
    first, second = verdicts.count("first"), verdicts.count("second")
    return Figures(
        order_disagreement=len(disagreeing) / len(readable) if readable else None,
        first_place=first / (first + second) if first + second else None,
        ties=verdicts.count("tie") / len(verdicts),
        unparsed=verdicts.count("unparsed") / len(verdicts),
    )
