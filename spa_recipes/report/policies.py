"""The figures of every policy of a run, as the table of a paper has them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from spa_recipes.plan import Plan
from spa_recipes.recipe.schema import Recipe
from spa_recipes.report.figures import LARGE_COUNT, Figure, Shown, columns, interval, with_interval
from spa_recipes.state.stagedir import Manifest

Line = dict[str, str | int | float | None]
"""One policy of one run, by column; None where nothing was measured."""

FIRST = {
    "run": Shown("run", "{}"),
    "policy": Shown("policy", "{}"),
    "labels": Shown("labels", LARGE_COUNT),
    "steps": Shown("steps", LARGE_COUNT),
}
"""The columns before the figures."""


def lines(plan: Plan, name: str, found: Mapping[str, Manifest]) -> list[Line]:
    """pi_init, pi_0, pi_1, ..., the extrapolated one, and the control, of a run, as far as they are evaluated.

    `labels` are the seed labels that a policy was trained with, `steps` the optimizer steps of DPO and refinement up to
    it. The other columns are those of `spa_recipes.report.figures`; beside a win rate are the ends of its interval.
    """
    result = []
    control = ["control"] if "evaluate-control" in found else []
    for policy in [*evaluated(plan, found), *control]:
        evaluation, rounds = found[f"evaluate-{policy}"], _rounds(plan, found, policy)
        symbol = policy if policy == "control" else f"pi_{policy}"
        line: Line = {"run": name, "policy": symbol, **_trained(found, policy, rounds)}
        for key, (figure, _) in columns().items():
            line[key] = value = _value(figure, evaluation, rounds)
            if figure.is_win_rate:
                ends = (None, None) if value is None else interval(evaluation, figure.name)
                line |= dict(zip(interval_keys(key), ends, strict=True))
        result.append(line)
    return result


def evaluated(plan: Plan, found: Mapping[str, Manifest]) -> list[str]:
    """The policies that are evaluated, from `init` to the last one, by the ends of their names."""
    assert isinstance(plan.recipe, Recipe)
    names = ("init", *map(str, range(plan.recipe.iterations + 1)), "extrapolated")
    return [name for name in names if f"evaluate-{name}" in found]


def measured(
    plan: Plan, found: Mapping[str, Manifest], policy: str, figures: Mapping[str, Figure]
) -> dict[str, float | None]:
    """What is known of one policy: its labels and steps, and each of the figures, as `lines` has them.

    Args:
        policy: one of `evaluated`.
    """
    evaluation, rounds = found[f"evaluate-{policy}"], _rounds(plan, found, policy)
    values = {key: _value(figure, evaluation, rounds) for key, figure in figures.items()}
    return {**_trained(found, policy, rounds), **values}


def _rounds(plan: Plan, found: Mapping[str, Manifest], policy: str) -> list[Manifest]:
    """What the iterations did that led to a policy."""
    assert isinstance(plan.recipe, Recipe)
    before = {"init": 0, "control": 0, "extrapolated": plan.recipe.iterations}
    count = before[policy] if policy in before else int(policy)
    numbers = {str(i) for i in range(1, count + 1)}
    return [manifest for stage, manifest in found.items() if stage.rpartition("-")[2] in numbers]


def _trained(found: Mapping[str, Manifest], policy: str, rounds: Sequence[Manifest]) -> dict[str, int]:
    """The labels and optimizer steps that a policy was trained with."""
    on_labels = found.get({"init": "", "control": "control"}.get(policy, "seed"))
    trained = [*([on_labels] if on_labels else []), *(stage for stage in rounds if stage.kind == "refine")]
    return {
        "labels": 0 if on_labels is None else on_labels.rows,
        "steps": sum(int(stage.number("steps")) for stage in trained),
    }


def interval_keys(key: str) -> tuple[str, str]:
    """The columns of the ends of a win rate's interval."""
    return f"{key}_low", f"{key}_high"


def _value(figure: Figure, evaluation: Manifest, rounds: Sequence[Manifest]) -> float | None:
    """A policy's figure: that of its evaluation, or the mean over the rows of the iterations that led to it."""
    if evaluation.kind in figure.kinds:
        return None if evaluation.metrics.get(figure.name) is None else evaluation.number(figure.name)
    known = [stage for stage in rounds if stage.kind in figure.kinds and stage.metrics.get(figure.name) is not None]
    rows = sum(stage.rows for stage in known)
    return sum(stage.number(figure.name) * stage.rows for stage in known) / rows if rows else None


class PolicyTable(NamedTuple):
    """The lines for people: a text per column, without the columns that are empty in every line."""

    headings: list[str]
    rows: list[list[str]]


def as_table(found: Sequence[Line], *, with_run: bool = False) -> PolicyTable:
    """The lines as a table; the name of the run is a column only with `with_run`."""
    every = {**FIRST, **{key: shown for key, (_, shown) in columns().items()}}
    keys = [key for key in every if any(line[key] is not None for line in found)]
    keys = [key for key in keys if with_run or key != "run"]
    rows = [["" if line[key] is None else text_of(line, key, every[key]) for key in keys] for line in found]
    return PolicyTable([every[key].label for key in keys], rows)


def text_of(line: Line, key: str, shown: Shown) -> str:
    """A figure of a policy for people; a win rate has its interval."""
    value, low, high = line[key], *(line.get(end) for end in interval_keys(key))
    if isinstance(value, float) and isinstance(low, float) and isinstance(high, float):
        return with_interval(value, low, high)
    return shown.pattern.format(value)
