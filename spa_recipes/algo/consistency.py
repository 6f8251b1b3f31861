"""How far two judges rank the same answers alike, and what a label is then worth (CREAM, arXiv 2410.12735)."""

import itertools
import math
from collections.abc import Sequence


def kendall_tau(rewards_1: Sequence[float], rewards_2: Sequence[float]) -> float:
    """Kendall's tau between two rankings of the same answers: between -1 and 1.

    Of the pairs of answers, those that both judges order alike minus those that they order the other way round, over
    all but those that are equal for both, as the same text is: they rank nothing. 0 where all are.
    """
    signs = [
        (_sign(a - b), _sign(c - d))
        for (a, c), (b, d) in itertools.combinations(zip(rewards_1, rewards_2, strict=True), 2)
    ]
    ranked = [one * other for one, other in signs if one or other]
    return sum(ranked) / len(ranked) if ranked else 0.0


def consistency(taus: Sequence[float]) -> float:
    """c = (1 + tau)/2, with the mean tau of the prompts: the weight of a label as it is; that of its flip is 1 - c.

    Raises:
        ValueError: no prompts.
    """
    if not taus:
        raise ValueError("no rankings to compare")
    return (1.0 + math.fsum(taus) / len(taus)) / 2.0


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
