"""The figures of every policy of a run, as the table of a paper has them."""

from collections.abc import Sequence
from typing import NamedTuple

from spa_recipes.plan import Plan
from spa_recipes.recipe.schema import Recipe
from spa_recipes.state.stagedir import Manifest


class Line(NamedTuple):
    """One policy of one run; None where nothing was measured.

    Attributes:
        labels: seed labels that the policy was trained with.
        steps: optimizer steps of DPO and refinement up to it.
        judge_accuracy: of the judges of its iterations on their own samples, against the sandbox's gold reward.
        label_accuracy: of its implicit reward on held-out labels.
    """

    run: str
    policy: str
    labels: int
    steps: int
    win_rate: float | None
    length_controlled: float | None
    reward: float | None
    tokens: float | None
    judge_accuracy: float | None
    label_accuracy: float | None


HEADINGS = {
    "run": "run",
    "policy": "policy",
    "labels": "labels",
    "steps": "steps",
    "win_rate": "win rate",
    "length_controlled": "at equal length",
    "reward": "reward",
    "tokens": "tokens",
    "judge_accuracy": "judge accuracy",
    "label_accuracy": "label accuracy",
}
"""What people call the fields."""

SHARES = frozenset({"win_rate", "length_controlled", "judge_accuracy", "label_accuracy"})


def lines(plan: Plan, name: str, found: dict[str, Manifest]) -> list[Line]:
    """pi_init, pi_0, pi_1, ... of a run, as far as they are evaluated."""
    assert isinstance(plan.recipe, Recipe)
    result = []
    for policy in ("init", *map(str, range(plan.recipe.iterations + 1))):
        evaluation = found.get(f"evaluate-{policy}")
        if evaluation is None:
            continue
        iterations = range(1, int(policy) + 1) if policy != "init" else ()
        trained = [found[stage] for i in iterations if (stage := f"refine-{i}") in found]
        seed = found.get("seed") if policy != "init" else None
        judged = [found[stage] for i in iterations if (stage := f"judge-{i}") in found]
        figures = evaluation.metrics
        result.append(
            Line(
                name,
                f"pi_{policy}",
                0 if seed is None else seed.rows,
                sum(int(stage.metrics["steps"]) for stage in (*([seed] if seed else []), *trained)),
                figures.get("win_rate_vs_init"),
                figures.get("length_controlled_win_rate_vs_init"),
                figures.get("mean_reward"),
                figures.get("mean_tokens"),
                _over_pairs(judged, "accuracy_vs_gold"),
                figures.get("heldout_accuracy"),
            )
        )
    return result


def _over_pairs(judged: Sequence[Manifest], name: str) -> float | None:
    """Mean over the pairs of several judge stages."""
    known = [manifest for manifest in judged if name in manifest.metrics]
    pairs = sum(manifest.rows for manifest in known)
    return sum(float(manifest.metrics[name]) * manifest.rows for manifest in known) / pairs if pairs else None


def cell(name: str, value: str | float | None) -> str:
    """A field for people; empty for None."""
    if value is None or isinstance(value, str):
        return value or ""
    if name in SHARES:
        return f"{value:.1%}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}"
