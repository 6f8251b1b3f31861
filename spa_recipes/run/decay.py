"""The stop rules: a judge that gets worse labels no more, and what a judge labels that knows little trains nothing."""

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


class Unreliable(NamedTuple):
    """Where the other rule stops a run.

    Attributes:
        stage: the training that is not run.
        now: how often the judge is right by the agreement of the members; 0.5 is no better than chance.
        limit: how often it should be, as the recipe says.
    """

    stage: str
    now: float
    limit: float

    def __str__(self) -> str:
        now = f"{self.now:.1%}" if self.now > 0.5 else "no better than chance"
        return (
            f"stopped before {self.stage}: the judge's reliability by the agreement of its members is {now}, below "
            f"evaluation.min_judge_reliability ({self.limit:.1%}); lower it to continue"
        )


Stop = Decay | Unreliable


def early_stop(recipe: AnyRecipe, manifests: Mapping[str, Manifest]) -> Stop | None:
    """Where the stop rules end a run, and why; None if they do not."""
    decay, unreliable = judge_decay(recipe, manifests), unreliable_judge(recipe, manifests)
    if decay is None or unreliable is None:
        return decay or unreliable
    before_answers, before_training = (int(stop.stage.rpartition("-")[2]) for stop in (decay, unreliable))
    return decay if before_answers <= before_training else unreliable


def unreliable_judge(recipe: AnyRecipe, manifests: Mapping[str, Manifest]) -> Unreliable | None:
    """The first training on labels that are right too rarely by the agreement of members; None if there is none.

    Reads `evaluation.min_judge_reliability` and the reliabilities in `manifests`, and nothing else.
    """
    if not isinstance(recipe, Recipe) or (limit := recipe.evaluation.min_judge_reliability) is None:
        return None
    for i in range(1, recipe.iterations + 1):
        told = manifests.get(f"reliability-{i}")
        if told is not None and (now := told.number("reliability")) < limit:
            return Unreliable(f"refine-{i}", now, limit)
    return None


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
