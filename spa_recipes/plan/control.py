"""The control of a recipe: DPO with as many optimizer steps as SPA's whole chain, on the seed labels alone."""

from spa_recipes.plan.adapters import trained_on
from spa_recipes.plan.added import added_before
from spa_recipes.plan.kinds import MODEL
from spa_recipes.plan.models import Models
from spa_recipes.plan.stages import Builder, Input, StageOutput
from spa_recipes.recipe.schema import Recipe, RefineTraining

CONTROL = "control"


def add_control(recipe: Recipe, build: Builder, models: Models) -> Input:
    """Add the training of the control, which starts where SPA does; returns its policy.

    How many steps SPA's chain took depends on how many pairs were judged, so it reads the judgments of all iterations,
    and the labels that were added before them. It is not trained on the latter.
    """
    seed, numbers = build.stages["seed"], range(1, recipe.iterations + 1)
    counted = {name: getattr(recipe.refine, name) for name in ("num_train_epochs", "global_batch_size", "seed_replay")}
    judgments = {f"judgments-{i}": StageOutput(f"judge-{i}", "judgments.jsonl") for i in numbers}
    build.add(
        CONTROL,
        "control",
        "the control: DPO on the seed labels alone, from pi_init, with as many steps as SPA",
        settings={
            **models.training,
            "training": seed.settings["training"],
            "refine": RefineTraining.model_construct(**counted),
            "iterations": [build.stages[f"judge-{i}"].rows for i in numbers],
            "seed": recipe.seed,
        },
        inputs={
            "policy": models.init,
            "reference": models.init,
            **trained_on(recipe, build, models.init, models.init),
            "pairs": seed.inputs["pairs"],
            **judgments,
            **{f"added-{i}": added for i in numbers if (added := added_before(i, recipe)) is not None},
        },
        rows=seed.rows,
    )
    return StageOutput(CONTROL, MODEL)
