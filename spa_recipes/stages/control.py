"""The control: DPO on the seed labels alone, from pi_init, with as many optimizer steps as SPA's whole chain."""

from collections.abc import Sequence

from spa_recipes.data.rows import PairRow, read_rows
from spa_recipes.data.stage_rows import JudgmentRow
from spa_recipes.recipe.schema import PreferenceTraining, RefineTraining
from spa_recipes.stages.context import Context, Result
from spa_recipes.stages.dpo import train_on_labels
from spa_recipes.training.order import replayed_rows, steps_per_epoch


def run(context: Context) -> Result:
    """Write `model/`."""
    settings, inputs = context.spec.settings, context.spec.inputs
    numbers = sorted(int(name.removeprefix("judgments-")) for name in inputs if name.startswith("judgments-"))
    judged = [len(read_rows(context.input(f"judgments-{i}"), JudgmentRow)) for i in numbers]
    added = [len(read_rows(context.input(f"added-{i}"), PairRow)) if f"added-{i}" in inputs else 0 for i in numbers]
    return train_on_labels(
        context,
        steps_of_chain(
            PreferenceTraining.model_validate(settings["training"]),
            RefineTraining.model_validate(settings["refine"]),
            labels=len(read_rows(context.input("pairs"), PairRow)),
            judged=judged,
            added=added,
        ),
    )


def steps_of_chain(
    seed: PreferenceTraining, refine: RefineTraining, *, labels: int, judged: Sequence[int], added: Sequence[int]
) -> int:
    """Optimizer steps of SPA's seed stage and of all its refinements.

    Args:
        labels: seed labels.
        judged: pairs that were judged, by iteration; replayed seed pairs come to them.
        added: labels that were added before each iteration.
    """
    rows = [count + replayed_rows(count, refine.seed_replay, more) for count, more in zip(judged, added, strict=True)]
    return sum(
        steps_per_epoch(count, training.global_batch_size) * training.num_train_epochs
        for training, count in [(seed, labels), *((refine, count) for count in rows)]
    )
