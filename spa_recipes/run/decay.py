"""The stop rule: a judge that gets worse labels no further iteration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from spa_recipes.plan import gates
from spa_recipes.recipe.schema import Recipe
from spa_recipes.state.stagedir import Manifest

if TYPE_CHECKING:
    from spa_recipes.recipe.jobs import AnyRecipe


class Decay(NamedTuple):
    """Where the rule stops a run.

    Attributes:
        stage: the first stage that is not run.
        best, now: the judge's accuracy on held-out labels: the best so far, and that of the newest policy.
        limit: how much it may fall, as the recipe says.
    """

    stage: str
    best: float
    now: float
    limit: float

    def __str__(self) -> str:
        return (
            f"stopped before {self.stage}: the judge's accuracy on held-out labels fell from {self.best:.1%} to "
            f"{self.now:.1%}, by more than evaluation.max_judge_decay ({self.limit:.1%}); raise it to continue"
        )


def judge_decay(recipe: AnyRecipe, manifests: Mapping[str, Manifest]) -> Decay | None:
    """The first iteration whose judge, pi_{i-1}, is too far below the best one before it; None if there is none.

    Reads `evaluation.max_judge_decay` and the evaluations in `manifests`, and nothing else. The plan lets an iteration
    wait for its evaluation (see `spa_recipes.plan.gates`), so the answer does not depend on which stage ends first.
    """
    if not isinstance(recipe, Recipe) or (limit := recipe.evaluation.max_judge_decay) is None:
        return None
    best = 0.0
    for stage, name in gates(recipe).items():
        evaluation = manifests.get(name)
        if evaluation is None:  # zero labels: pi_0 is pi_init, whose implicit reward is no judge
            continue
        now = evaluation.number("heldout_accuracy")
        best = max(best, now)
        if now < best - limit:
            return Decay(stage, best, now, limit)
    return None
