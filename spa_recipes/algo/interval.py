"""The interval of a share that was seen in a sample. It needs no torch, so that light commands can write one."""

import math
from collections.abc import Sequence

QUANTILE = 1.959963984540054
"""97.5 % quantile of the normal distribution: an interval contains the true share with probability 95 %."""


def paired_interval(differences: Sequence[float]) -> tuple[float, float]:
    """95 % interval of a mean of paired differences, each from -1 to 1, of independent pairs.

    Agresti and Min's (2005) for matched proportions: the normal interval after half a pair for either side and one for
    neither were added. It has a width even where all differences are alike.

    Raises:
        ValueError: no differences.
    """
    if not differences:
        raise ValueError("no interval of no differences")
    n = len(differences) + 2
    middle = sum(differences) / n
    squares = (sum(value * value for value in differences) + 1) / n
    reach = QUANTILE * math.sqrt((squares - middle * middle) / n)
    return max(-1.0, middle - reach), min(1.0, middle + reach)


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval: all shares p whose own error, sqrt(p * (1 - p) / n), explains the one seen.

    Outcomes between 0 and 1 vary less than wins and losses with the same mean do, so ties make the interval wider than
    it need be and never too narrow. It has a width even where every outcome is a win.

    Args:
        share: mean of n independent outcomes, each from 0 to 1.

    Raises:
        ValueError: no outcomes.
    """
    if n < 1:
        raise ValueError("no interval of no outcomes")
    weight = QUANTILE * QUANTILE / n
    middle = (share + weight / 2) / (1 + weight)
    reach = QUANTILE / (1 + weight) * math.sqrt(share * (1 - share) / n + weight / (4 * n))
    return max(0.0, min(share, middle - reach)), min(1.0, max(share, middle + reach))  # rounding could leave [0, 1]
