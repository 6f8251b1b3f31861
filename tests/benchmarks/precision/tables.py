"""The tables in Markdown, from what was made so far: what is missing is left out, and the pairs are counted."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from statistics import fmean
from typing import TypeVar

import numpy as np
import torch

from spa_recipes.algo.winrate import confidence_interval
from tests.benchmarks.precision.checks import CHECKED, rounding_figures, tangents
from tests.benchmarks.precision.figures import (
    Floats,
    Margins,
    correlation,
    joined,
    label_agreement,
    median_error,
    slope,
    truth_agreement,
    with_intervals,
)
from tests.benchmarks.precision.kept import NotMadeError
from tests.benchmarks.precision.loops import wins
from tests.benchmarks.precision.passes import NEW, TRUTH, WAYS, Passes, Saved, Way
from tests.benchmarks.precision.policies import LOOPS, Case, Runs, World

SAVED: dict[Saved, str] = {
    "to nearest": "to nearest (before)",
    "stochastically": "stochastically (now)",
}

HEAD = 2
"""Lines of an empty table."""

T = TypeVar("T")


class Tables:
    """What all tables are made from. Nothing is made: `world.kept` only looks."""

    def __init__(self, world: World, seeds: Sequence[int]) -> None:
        self._world, self._seeds = world, seeds
        self._runs, self._passes = Runs(world), Passes(world)

    def ways(self, rate: float) -> str:
        """Every way to get the log-ratios, beside float32's."""
        truth = self._known(rate, partial(self._margins, way=TRUTH))
        if not truth:
            return ""
        quartiles = np.percentile(np.abs(joined(truth).true), [25, 50, 75])
        lines = [
            f"Learning rate {rate:g} (seeds: {len(truth)}); quartiles of the true |margin|: "
            f"{', '.join(f'{q:.2f}' for q in quartiles)} nats.",
            "",
            "| saved, arithmetic, method | median error, nats | slope | labels of float32 | labels of the data "
            "| error of reading, nats | pairs |",
            "|---|---|---|---|---|---|---|",
        ]
        for way in WAYS.values():
            if parts := self._known(rate, partial(self._margins, way=way)):
                both = joined(parts)
                exact = way._replace(arithmetic=torch.float32, method="difference")
                read = self._known(rate, partial(self._margins, way=way, truth=exact))
                error = f"{median_error(joined(read)):.2g}" if read and exact != way else ""
                lines.append(f"| {way.label} | {_agreement(both)} | {error} | {len(both.true)} |")
        return "\n".join(lines) + "\n"

    def saved(self, rate: float) -> str:
        """What each way to save keeps of the updates."""
        lines = [
            f"| learning rate {rate:g}, saved in bfloat16 | update kept | rounding as a multiple of the update |",
            "|---|---|---|",
        ]
        rows: dict[str, Callable[[Case], dict[str, float]]] = {
            label: partial(self._update, saved=saved) for saved, label in SAVED.items()
        }
        rows["stochastically, by a plain version"] = self._plain_update
        for label, figures in rows.items():
            if found := self._known(rate, figures):
                kept, noise = (fmean(f[name] for f in found) for name in ("update_kept", "rounding_to_update"))
                lines.append(f"| {label} | {100 * kept:.1f} % | {noise:.2f} |")
        return "\n".join(lines) + "\n" if len(lines) > HEAD else ""

    def tangents(self, rate: float) -> str:
        """The package's tangent beside a plain one in float32."""
        errors = [e for part in self._known(rate, self._tangent_errors) for e in part]
        if not errors:
            return ""
        return (
            f"Learning rate {rate:g}: the tangent in bfloat16 differs from a plain one in float32, both of the stored "
            f"policy, by {np.median(errors):.4f} nats (median of {len(errors)} answers; {max(errors):.4f} at most).\n"
        )

    def loops(self, rate: float, judge: float) -> str:
        """The policies of whole loops beside those of the float32 loop; the judge was trained with its own rate."""
        lines = [
            f"| learning rate {rate:g} | correlation | median error, nats | slope | labels of float32 "
            "| labels of the data | win rate | pairs |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for iteration in range(2, self._world.sizes.iterations + 1):
            for name, loop in LOOPS.items():
                lines += self._loop_row(name, f"T = {iteration}, {loop.label}", rate, iteration, judge)
        return "\n".join(lines) + "\n" if len(lines) > HEAD else ""

    def _loop_row(self, name: str, label: str, rate: float, iteration: int, judge: float) -> Iterator[str]:
        parts = self._known(rate, partial(self._loop_margins, name=name, iteration=iteration))
        if not parts:
            return
        both = joined(parts)
        outcomes = self._known(rate, partial(self._wins, name=name, iteration=iteration, judge=judge))
        won = [outcome for part in outcomes for outcome in part]
        win_rate = ""
        if won:
            low, high = confidence_interval(won)
            win_rate = f"{100 * fmean(won):.1f} % ({100 * low:.0f} to {100 * high:.0f})"
        (together,) = with_intervals(both, correlation)
        yield (
            f"| {label} | {together.value:.3f} ({together.low:.2f} to {together.high:.2f}) | {_agreement(both)} | "
            f"{win_rate} | {len(both.true)} |"
        )

    def _known(self, rate: float, value: Callable[[Case], T]) -> list[T]:
        """A value for each seed for which it is there."""
        found = []
        for seed in self._seeds:
            with suppress(NotMadeError):
                found.append(value(Case(seed, rate)))
        return found

    def _update(self, case: Case, *, saved: Saved) -> dict[str, float]:
        return self._passes.update(self._runs.policy("float32", case, 0), saved)

    def _plain_update(self, case: Case) -> dict[str, float]:
        return rounding_figures(self._world, self._passes, self._runs.policy("float32", case, 0))

    def _margins(self, case: Case, *, way: Way, truth: Way = TRUTH) -> Margins:
        pairs = self._runs.heldout(case)
        policy, items = self._runs.policy("float32", case, 0), self._passes.items(pairs)
        true, found = (margins(self._passes.log_ratios(policy, each, items)) for each in (truth, way))
        return Margins([pair["prompt_id"] for pair in pairs], true, found)

    def _loop_margins(self, case: Case, *, name: str, iteration: int) -> Margins:
        pairs = self._runs.heldout(case)
        items = self._passes.items(pairs)
        true, found = (
            margins(self._passes.log_ratios(self._runs.policy(loop, case, iteration), TRUTH, items))
            for loop in ("float32", name)
        )
        return Margins([pair["prompt_id"] for pair in pairs], true, found)

    def _wins(self, case: Case, *, name: str, iteration: int, judge: float) -> list[float]:
        return wins(
            self._world,
            self._passes,
            self._runs.policy(name, case, iteration),
            getattr(torch, LOOPS[name].dtype),
            self._runs.policy("float32", Case(case.seed, judge), 0),
            self._runs.heldout(case),
        )

    def _tangent_errors(self, case: Case) -> list[float]:
        policy, items = self._runs.policy("float32", case, 0), self._passes.items(self._runs.heldout(case))
        plain = tangents(self._world, self._passes, policy, NEW, items)
        ours = self._passes.log_ratios(policy, NEW, items)[:CHECKED]
        return [abs(a - b) for a, b in zip(ours, plain, strict=True)]


def margins(log_ratios: Sequence[float]) -> Floats:
    """Log-ratio of the preferred answer minus that of the other, of each pair, in nats."""
    found: Floats = np.array(log_ratios[::2]) - np.array(log_ratios[1::2])
    return found


def _agreement(both: Margins) -> str:
    """Cells: median error, slope, labels as float32's, labels as the data's; each with its 95 % interval."""
    error, line, *shares = with_intervals(both, median_error, slope, truth_agreement, label_agreement)
    cells = [
        f"{error.value:.2g} ({error.low:.2g} to {error.high:.2g})",
        f"{line.value:.2f} ({line.low:.2f} to {line.high:.2f})",
        *(f"{100 * share.value:.1f} % ({100 * share.low:.0f} to {100 * share.high:.0f})" for share in shares),
    ]
    return " | ".join(cells)
