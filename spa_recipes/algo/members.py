"""Several seed policies: their common reward, and what their agreement tells of how often a label is right.

Members are trained on different parts of the seed labels, so that they err on different pairs. Nothing here needs a
label of the pairs that are judged.
"""

import itertools
import math
import statistics
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
    that they share make p too high: see `accuracy_on_the_line`. At or below a = 1/2 there is no such p: 1/2.
    """
    return (1.0 + math.sqrt(max(0.0, 2.0 * a - 1.0))) / 2.0


def accuracy_on_the_line(a: float, labelled_agreement: float, labelled_accuracy: float) -> float:
    """How often members are right on pairs without labels, by how much less they agree there than on labelled pairs.

    Phi^-1(p) = Phi^-1(p_labelled) + Phi^-1(a) - Phi^-1(a_labelled): accuracy and agreement move from one set of pairs
    to the other by the same step on the scale of the normal quantile (agreement on the line, arXiv 2206.13089, with
    slope 1). Errors that members share are in both agreements, and cancel. 1/2, no better than chance, where that is
    what follows, and at or below a = 1/2.

    Args:
        a: agreement on the pairs; labelled_agreement: on the labelled ones.
        labelled_accuracy: mean accuracy of the members on the labelled pairs.
    """
    if a <= 0.5:
        return 0.5
    step = _quantile(a) - _quantile(labelled_agreement)
    return max(0.5, _NORMAL.cdf(_quantile(labelled_accuracy) + step))


_NORMAL = statistics.NormalDist()
_EDGE = 1e-6
"""How near a share may come to 0 and 1, where its quantile is not finite."""


def _quantile(share: float) -> float:
    return _NORMAL.inv_cdf(min(1.0 - _EDGE, max(_EDGE, share)))
