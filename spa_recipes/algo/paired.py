"""Means over seeds, differences seed by seed, and what chance does to them. No torch: light commands read this.

Two variants that run on the same seeds are compared by their differences: the seeds' own ups and downs cancel.
"""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

LEVEL = 0.95
"""Of every interval: it contains the true mean with this probability."""
_TINY = 1e-300
_ENOUGH = 1e-15


class Estimate(NamedTuple):
    """The mean of independent values.

    Attributes:
        n: how many values.
        sd: standard deviation of a value; None for a single one, which tells nothing of chance.
        low, high: ends of the 95 % t interval of the mean; None likewise.
        p: two-sided probability of a mean at least so far from 0 if the true one is 0 (one-sample t test); None
            likewise.
    """

    n: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None
    p: float | None


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, spread, t interval and t test of independent values; of paired differences, those of the paired t test.

    Values that are all equal have an interval without width, and p is 0 unless they are 0.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("no estimate of no values")
    mean, n = statistics.fmean(values), len(values)
    if n == 1:
        return Estimate(n, mean, None, None, None, None)
    sd = statistics.stdev(values)
    error = sd / math.sqrt(n)
    reach = t_quantile((1 + LEVEL) / 2, n - 1) * error
    if error == 0:
        p = 1.0 if mean == 0 else 0.0
    else:
        p = two_sided_p(mean / error, n - 1)
    return Estimate(n, mean, sd, mean - reach, mean + reach, p)


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the adjusted p of each hypothesis, in their order.

    A family whose hypotheses are rejected where the adjusted p is below a has a probability of at most a to contain a
    single wrong rejection (Holm 1979). The k-th smallest of m is multiplied by m - k + 1, and is never below the ones
    before it.
    """
    adjusted, largest = [0.0] * len(ps), 0.0
    for place, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        largest = max(largest, min(1.0, (len(ps) - place) * ps[i]))
        adjusted[i] = largest
    return adjusted


def two_sided_p(t: float, df: int) -> float:
    """P(|T| >= |t|) of Student's t with `df` degrees of freedom: I_x(df/2, 1/2) with x = df/(df + t^2)."""
    return _incomplete_beta(df / (df + t * t), df / 2, 0.5)


def t_quantile(share: float, df: int) -> float:
    """The value that Student's t stays below with probability `share`, at least one half."""
    low, high = 0.0, 1.0
    while 1 - two_sided_p(high, df) / 2 < share:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if 1 - two_sided_p(middle, df) / 2 < share:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b), by the continued fraction where that converges fast."""
    if x in (0.0, 1.0):
        return x
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(x, a, b) / a
    return 1.0 - front * _fraction(1.0 - x, b, a) / b


def _fraction(x: float, a: float, b: float) -> float:
    """The continued fraction of I_x(a, b) by Lentz's method (Numerical Recipes, section 6.4)."""
    c, d = 1.0, 1.0 / _not_zero(1.0 - (a + b) * x / (a + 1))
    result = d
    for m in range(1, 10_000):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1.0 / _not_zero(1.0 + term * d)
            c = _not_zero(1.0 + term / c)
            result *= d * c
        if abs(d * c - 1.0) < _ENOUGH:
            break
    return result


def _not_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
