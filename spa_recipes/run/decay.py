"""The stop rule: a judge that gets worse does not label another iteration."""

from collections.abc import Mapping
from typing import NamedTuple

from spa_recipes.plan import Plan
from spa_recipes.recipe.schema import Recipe
from spa_recipes.state.stagedir import Manifest


class Decay(NamedTuple):
    """Where the rule stops a run.

    Attributes:
        stage: the first stage that does not run.
        best, now: the judge's accuracy on held-out labels, its best so far and that of the newest policy.
        limit: the fall that the recipe allows.
    """

    stage: str
    best: float
    now: float
    limit: float

    def __str__(self) -> str:
        return (
            f"stopped before {self.stage}: the judge's accuracy on held-out labels fell from {self.best:.1%} to "
            f"{self.now:.1%}, by more than evaluation.max_judge_decay ({self.limit:.1%}); raise it to go on"
        )


def judge_decay(plan: Plan, manifests: Mapping[str, Manifest]) -> Decay | None:
    """The first iteration whose judge, pi_{i-1}, is too far below the best one before it; None if there is none.

    Reads `evaluation.max_judge_decay` and the evaluations that are done, so that the same answer follows from what is
    on disk at any time.
    """
    recipe = plan.recipe
    if not isinstance(recipe, Recipe) or recipe.evaluation.max_judge_decay is None:
        return None
    limit, best = recipe.evaluation.max_judge_decay, 0.0
    for i in range(1, recipe.iterations + 1):
        evaluation = manifests.get(f"evaluate-{i - 1}")
        if evaluation is None:  # zero labels: pi_0 is pi_init, whose implicit reward is no judge
            continue
        now = float(evaluation.metrics["heldout_accuracy"])
        best = max(best, now)
        if now < best - limit:
            return Decay(f"generate-{i}", best, now, limit)
    return None
