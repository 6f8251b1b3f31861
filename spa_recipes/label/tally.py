"""What people chose: counts, and how often they agree with themselves, with each other and with a judge."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import NamedTuple

from spa_recipes.algo.agreement import cohens_kappa
from spa_recipes.algo.interval import wilson_interval
from spa_recipes.label.file import LabelRow

Outcome = int | str
"""Index of the better answer, or `tie`."""


class Agreement(NamedTuple):
    """How often two series of labels are the same, of n, with Wilson's 95 % interval of the share and Cohen's kappa."""

    same: int
    n: int
    low: float
    high: float
    kappa: float | None

    @property
    def share(self) -> float:
        """The share of equal labels."""
        return self.same / self.n


class Counts(NamedTuple):
    """First looks at pairs by what was said, and second looks."""

    labels: int
    ties: int
    skips: int
    repeats: int


def counts(rows: Iterable[LabelRow]) -> Counts:
    """Count the rows of a labels file by their status."""
    status = [row["status"] for row in rows]
    return Counts(*(status.count(name) for name in ("preferred", "tied", "skipped", "repeated")))


def with_itself(rows: Sequence[LabelRow]) -> Agreement | None:
    """Agreement of each person's second look at a pair with the first; None without second looks."""
    first = {(row["by"], row["id"]): outcome for row in rows if _is_first(row) and (outcome := _outcome(row)) != "skip"}
    again = [(row["by"], row["id"], _outcome(row)) for row in rows if not _is_first(row)]
    return agreement([(first[by, name], o) for by, name, o in again if (by, name) in first and o != "skip"])


def between_people(rows: Sequence[LabelRow]) -> dict[tuple[str, str], Agreement]:
    """Agreement of each two people on the pairs that both have labelled."""
    said: dict[str, dict[str, Outcome]] = {}
    for row in rows:
        if _is_first(row) and (outcome := _outcome(row)) != "skip":
            said.setdefault(row["by"], {})[row["id"]] = outcome
    found = {}
    for one, other in combinations(sorted(said), 2):
        both = [(said[one][name], said[other][name]) for name in said[one] if name in said[other]]
        if (agreed := agreement(both)) is not None:
            found[one, other] = agreed
    return found


def with_judge(rows: Iterable[LabelRow]) -> Agreement | None:
    """Agreement of people with the judge where they prefer an answer; None where they nowhere do."""
    both = [
        (row["better"], row["judge_better"])
        for row in rows
        if _is_first(row) and row["better"] is not None and row["judge_better"] is not None
    ]
    return agreement(both)


def agreement(both: Sequence[tuple[Outcome | None, Outcome | None]]) -> Agreement | None:
    """Agreement of two series; None where they are empty."""
    if not both:
        return None
    same = sum(one == other for one, other in both)
    return Agreement(same, len(both), *wilson_interval(same / len(both), len(both)), cohens_kappa(both))


def _is_first(row: LabelRow) -> bool:
    return row["status"] != "repeated"


def _outcome(row: LabelRow) -> Outcome:
    return row["better"] if row["better"] is not None else row["choice"]
