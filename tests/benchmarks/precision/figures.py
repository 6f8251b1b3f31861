"""Figures of estimated margins beside the true ones, with intervals from resampled prompts."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLED = 1000
INTERVAL = (2.5, 97.5)


class Margins(NamedTuple):
    """Margins of pairs, log-ratio of the preferred answer minus that of the other, in nats.

    Attributes:
        prompts: a pair's prompt. Pairs of one prompt, which several seeds may have, are resampled together.
        true: float32's margins; found: those of the way that is looked at.
    """

    prompts: Sequence[str]
    true: Floats
    found: Floats

    def take(self, rows: NDArray[np.int64]) -> "Margins":
        """Some of the pairs, perhaps repeated."""
        return Margins((), self.true[rows], self.found[rows])


class Figure(NamedTuple):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


def label_agreement(margins: Margins) -> float:
    """Share of pairs whose margin prefers what the data prefers; a tie counts one half."""
    return float(np.mean((np.sign(margins.found) + 1) / 2))


def truth_agreement(margins: Margins) -> float:
    """Share of pairs that get the label which float32 gives them; a tie counts one half."""
    return float(np.mean((np.sign(margins.found) * np.sign(margins.true) + 1) / 2))


def slope(margins: Margins) -> float:
    """Slope of the least-squares line of the margins found on the true ones."""
    true = margins.true - margins.true.mean()
    return float(true @ margins.found / (true @ true))


def correlation(margins: Margins) -> float:
    """Pearson's; 0 where all margins found are equal."""
    if not margins.found.std() or not margins.true.std():
        return 0.0
    return float(np.corrcoef(margins.true, margins.found)[0, 1])


def median_error(margins: Margins) -> float:
    """Median of |found - true| in nats."""
    return float(np.median(np.abs(margins.found - margins.true)))


def with_intervals(margins: Margins, *statistics: Callable[[Margins], float]) -> list[Figure]:
    """Figures, each with the middle 95 % of what it is on resampled prompts."""
    rng = np.random.default_rng(0)
    rows_of: dict[str, list[int]] = {}
    for row, prompt in enumerate(margins.prompts):
        rows_of.setdefault(prompt, []).append(row)
    rows = [np.array(some) for some in rows_of.values()]
    drawn = []
    for _ in range(RESAMPLED):
        again = np.concatenate([rows[number] for number in rng.integers(len(rows), size=len(rows))])
        drawn.append([statistic(margins.take(again)) for statistic in statistics])
    low, high = np.percentile(drawn, INTERVAL, axis=0)
    return [Figure(statistic(margins), *ends) for statistic, *ends in zip(statistics, low, high, strict=True)]


def joined(parts: Sequence[Margins]) -> Margins:
    """The pairs of several seeds."""
    return Margins(
        [prompt for part in parts for prompt in part.prompts],
        np.concatenate([part.true for part in parts]),
        np.concatenate([part.found for part in parts]),
    )
