"""Several seed policies: their common reward, and what their agreement tells of how often a label is right.

Members are trained on different parts of the seed labels, so that they err on different pairs. Nothing here needs a
label of the pairs that are judged.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple


class Ensemble(NamedTuple):
    """One value of several, and its standard error."""

    value: float
    error: float


def ensemble(values: Sequence[float], penalty: float, errors: Sequence[float] | None = None) -> Ensemble:
    """Mean minus `penalty` times the (population) standard deviation of the members' values.

    With two members and penalty 1 it is the smaller value. The error is that of first order.

    Args:
        values: one per member; errors: their independent standard errors, None for 0.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("no members")
    count, mean = len(values), math.fsum(values) / len(values)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / count)
    slopes = [1.0 / count - (penalty * (value - mean) / (count * deviation) if deviation else 0.0) for value in values]
    error = math.hypot(*(slope * one for slope, one in zip(slopes, errors or [0.0] * count, strict=True)))
    return Ensemble(mean - penalty * deviation, error)


def agreement(margins: Sequence[Sequence[float]]) -> float:
    """a: the share of pairs on which two members prefer the same answer, averaged over all twos of members.

    A member whose margin is 0 agrees by one half.

    Args:
        margins: for each member r(y_1) - r(y_2) of every pair.

    Raises:
        ValueError: fewer than two members, or no pairs.
    """
    if len(margins) < 2 or not margins[0]:
        raise ValueError("agreement needs two members and a pair")
    votes = [
        0.5 if one * other == 0 else float((one > 0) == (other > 0))
        for first, second in itertools.combinations(margins, 2)
        for one, other in zip(first, second, strict=True)
    ]
    return math.fsum(votes) / len(votes)


def accuracy_of_independent(a: float) -> float:
    """p = (1 + sqrt(2a - 1))/2: how often members are right that agree on a share `a` of the pairs.

    Two members that are right with probability p, and err independently, agree on p^2 + (1 - p)^2 of the pairs. Errors
    that they share make p too high. At or below a = 1/2 there is no such p: 1/2, no better than chance.
    """
    return (1.0 + math.sqrt(max(0.0, 2.0 * a - 1.0))) / 2.0
