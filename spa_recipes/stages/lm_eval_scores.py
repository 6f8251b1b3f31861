"""The results of `lm-eval` for a model beside those of another one: what the alignment cost, per task and metric."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NotRequired, TypedDict

from spa_recipes.algo.paired import estimate
from spa_recipes.benchmarks.lm_eval import Measured, SampleRow, TaskResult
from spa_recipes.data.rows import read_rows, write_jsonl
from spa_recipes.stages.context import Context, Result
from spa_recipes.state import atomic
from spa_recipes.state.reading import read_json

Values = dict[tuple[str, int], float]
"""What rows are worth by one metric, by task and number of the row."""


class Score(TypedDict):
    """A metric of a task: the model's value, the other one's, and the difference between both.

    Attributes:
        difference_stderr: of the paired difference over the same rows; None where the metric is no mean over rows.
    """

    value: float
    stderr: float | None
    other: NotRequired[float]
    other_stderr: NotRequired[float | None]
    difference: NotRequired[float]
    difference_stderr: NotRequired[float | None]


def run(context: Context) -> Result:
    """Write `scores.json`, by task and metric, and `samples.jsonl`: the answers of both models side by side."""
    ours, rows = _results(context, "ours"), read_rows(context.input("ours_samples"), SampleRow)
    theirs: dict[str, TaskResult] = {}
    other_rows: list[SampleRow] = []
    if "theirs" in context.spec.inputs:
        theirs, other_rows = _results(context, "theirs"), read_rows(context.input("theirs_samples"), SampleRow)
    scores = score(ours, rows, theirs, other_rows)
    against = context.spec.settings.get("against")
    figures = {name: {**result, "metrics": scores[name]} for name, result in ours.items()}
    atomic.write_json(context.draft / "scores.json", {"against": against, "tasks": figures})
    others = {_place(row): row for row in other_rows}
    write_jsonl(context.draft / "samples.jsonl", (_beside(row, others.get(_place(row))) for row in rows))
    shown = {name: scores[name] for name, result in ours.items() if result["shown"]}
    docs = sum(result["docs"] for result in ours.values())
    return Result(docs, 0, {"tasks": len(shown), "scores": shown, "against": against})


def score(
    ours: Mapping[str, TaskResult],
    rows: Iterable[SampleRow],
    theirs: Mapping[str, TaskResult],
    other_rows: Iterable[SampleRow],
) -> dict[str, dict[str, Score]]:
    """The scores of a model by task and metric; where there is another model's result, with the paired difference."""
    values, other_values = _by_metric(rows), _by_metric(other_rows)
    scores: dict[str, dict[str, Score]] = {}
    for name, result in ours.items():
        scores[name] = {}
        tasks = set(_leaves(name, ours))
        for metric, mine in result["metrics"].items():
            one: Score = {"value": mine["value"], "stderr": mine["stderr"]}
            other = theirs[name]["metrics"].get(metric) if name in theirs else None
            if other is not None:
                one["other"], one["other_stderr"] = other["value"], other["stderr"]
                one["difference"] = mine["value"] - other["value"]
                both = [_of(tasks, values.get(metric, {})), _of(tasks, other_values.get(metric, {}))]
                one["difference_stderr"] = _paired_error(both[0], both[1], mine, other)
            scores[name][metric] = one
    return scores


def _paired_error(ours: Values, theirs: Values, mine: Measured, other: Measured) -> float | None:
    """Standard error of the mean difference row by row; None unless both results are the means of the same rows."""
    if len(ours) < 2 or ours.keys() != theirs.keys():
        return None
    for values, result in ((ours, mine), (theirs, other)):
        if not math.isclose(math.fsum(values.values()) / len(values), result["value"], rel_tol=1e-6, abs_tol=1e-9):
            return None
    found = estimate([value - theirs[place] for place, value in ours.items()])
    assert found.sd is not None
    return found.sd / math.sqrt(found.n)


def _by_metric(rows: Iterable[SampleRow]) -> dict[str, Values]:
    found: dict[str, Values] = {}
    for row in rows:
        for name, value in row["metrics"].items():
            found.setdefault(f"{name},{row['filter']}", {})[row["task"], row["doc_id"]] = value
    return found


def _of(tasks: set[str], values: Values) -> Values:
    return {place: value for place, value in values.items() if place[0] in tasks}


def _leaves(name: str, results: Mapping[str, TaskResult]) -> Iterator[str]:
    """The tasks whose rows a result is made of."""
    parts = results[name]["parts"] if name in results else []
    if not parts:
        yield name
    for part in parts:
        yield from _leaves(part, results)


def _results(context: Context, name: str) -> dict[str, TaskResult]:
    found: dict[str, TaskResult] = read_json(context.input(name))
    return found


def _place(row: SampleRow) -> tuple[str, int, str]:
    return row["task"], row["doc_id"], row["filter"]


def _beside(row: SampleRow, other: SampleRow | None) -> dict[str, Any]:
    if other is None:
        return {**row}
    return {**row, "other_responses": other["responses"], "other_metrics": other["metrics"]}
