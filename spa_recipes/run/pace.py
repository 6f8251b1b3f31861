"""How fast a stage goes, and how long it will still take, from the lines of progress that it has written."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from spa_recipes.run.progressfile import ProgressFile, progress_files
from spa_recipes.units import human_count, human_seconds


class Pace(NamedTuple):
    """Where a stage is.

    Attributes:
        note: its newest note, such as its loss.
        per_second: units per second since the first line of this work; None while that cannot be told.
    """

    done: int
    total: int
    unit: str
    note: str
    per_second: float | None

    def __str__(self) -> str:
        parts = [f"{self.done:,} of {self.total:,} {self.unit}", self.note]
        if self.per_second:
            parts.append(_rate(self.per_second, self.unit))
            parts.append(f"about {human_seconds((self.total - self.done) / self.per_second)} left")
        return ", ".join(filter(None, parts))


def pace_of(lines: Sequence[dict[str, Any]]) -> Pace | None:
    """The pace of one process from its lines of progress; None if there are none."""
    steps = current_work([line for line in lines if "done" in line and "total" in line])
    if not steps:
        return None
    first, last = steps[0], steps[-1]
    notes = [str(line["note"]) for line in steps if line.get("note")]
    seconds, done = last.get("time", 0.0) - first.get("time", 0.0), last["done"] - first["done"]
    rate = done / seconds if seconds > 0 and done > 0 else None
    return Pace(last["done"], last["total"], str(last["unit"]), notes[-1] if notes else "", rate)


def current_work(steps: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines at the end that count the same things: a training counts answers under its reference, then its steps.

    The time of one kind of work says nothing of another's.
    """
    found = [*steps[-1:]]
    for line in reversed(steps[:-1]):
        after = found[-1]
        if (line["unit"], line["total"]) != (after["unit"], after["total"]) or line["done"] > after["done"]:
            break
        found.append(line)
    return found[::-1]


def pace_of_attempt(attempt: Path) -> Pace | None:
    """The pace of the process that is furthest; None where nothing was written."""
    found = [pace for path in progress_files(attempt) if (pace := pace_of(ProgressFile(path).new_lines())) is not None]
    return max(found, key=lambda pace: pace.done / max(1, pace.total), default=None)


def _rate(per_second: float, unit: str) -> str:
    if per_second >= 1:
        return f"{human_count(per_second)} {unit}/s"
    return f"{human_seconds(1 / per_second)} per {unit.removesuffix('s')}"
