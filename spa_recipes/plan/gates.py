"""Where the stop rules of `evaluation` may end a run, as edges of the plan.

`max_judge_decay` reads an evaluation before it lets an iteration begin, so the iteration has to wait for that
evaluation. `min_judge_reliability` reads the agreement of members before it lets a training begin. A recipe without
these rules has no such edges: its evaluations may run beside the next iteration.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from spa_recipes.plan.benchmarks import is_of_benchmark
from spa_recipes.plan.chains import PEER
from spa_recipes.plan.graph import descendants
from spa_recipes.plan.stages import Stage
from spa_recipes.recipe.schema import Recipe


def gates(recipe: Recipe) -> dict[str, str]:
    """The first stage of each iteration, and the evaluation of pi_{i-1} that the rule reads before it.

    Empty without the rule. The evaluation of pi_0 does not exist where there are no seed labels.
    """
    if recipe.evaluation.max_judge_decay is None:
        return {}
    return {f"generate-{i}": f"evaluate-{i - 1}" for i in range(1, recipe.iterations + 1)}


def _gated(recipe: Recipe, stages: Mapping[str, Stage]) -> dict[str, str]:
    """For each stage that a rule may forbid, the one that the rule reads."""
    rules = gates(recipe)
    if recipe.evaluation.min_judge_reliability is not None:
        rules |= {f"refine-{i}": f"reliability-{i}" for i in range(1, recipe.iterations + 1)}
    return {name: read for name, read in rules.items() if read in stages}


def with_gates(recipe: Recipe, stages: Mapping[str, Stage]) -> tuple[Stage, ...]:
    """The stages with the edges of the stop rules.

    Each stage waits for the one that may forbid it, and that of the peer's chain for that of the run's own. Benchmarks
    measure the policy of the last iteration, and those of their stages that do not read it wait for that iteration all
    the same: nobody needs them if it is not run.
    """
    gated = _gated(recipe, stages)
    if not gated:
        return tuple(stages.values())
    last = f"refine-{recipe.iterations}"
    if last not in gated:
        last = f"generate-{recipe.iterations}"
    behind_last = descendants({name: stage.waits_for for name, stage in stages.items()}, last)

    def after(stage: Stage) -> Iterable[str]:
        if stage.id in gated:
            yield gated[stage.id]
        if stage.id.endswith(PEER) and (own := stage.id.removesuffix(PEER)) in gated:
            yield own
        if is_of_benchmark(stage) and stage.id not in behind_last:
            yield last

    return tuple(replace(stage, after=tuple(after(stage))) for stage in stages.values())
