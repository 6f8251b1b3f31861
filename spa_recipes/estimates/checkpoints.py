"""How often a training saves its state, and how much of that is on the disk at the same time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from spa_recipes.estimates.memory import Sharding
from spa_recipes.estimates.shape import shape_of
from spa_recipes.models.dtype import weight_bytes
from spa_recipes.plan import Stage
from spa_recipes.recipe.schema import SAVE_STEPS, Training

if TYPE_CHECKING:
    from spa_recipes.recipe.jobs import AnyRecipe

STATE_BYTES = 12
"""Per trained parameter: float32 weight and two moments."""
LARGE = 20 * 10**9
"""Bytes of a checkpoint that is written and kept as rarely as possible, unless the recipe says otherwise."""
KEPT = 2


class Checkpoints(NamedTuple):
    """What a training stage saves while it runs.

    Attributes:
        every: optimizer steps between two of them.
        kept: how many are kept; while the next one is written there is one more.
        size: bytes of each; None where the size of the model is not known.
        most: how many are on the disk at the same time; there is none after the last step.
    """

    every: int
    kept: int
    size: int | None
    most: int


def steps_of(stage: Stage) -> int | None:
    """Optimizer steps of a stage that trains, if its rows are known; None of other stages."""
    training = stage.settings.get("training")
    if training is None or stage.rows is None:
        return None
    iterations = stage.settings.get("iterations", [])  # of a control, which takes the steps of a whole chain
    return _steps(training, stage.rows) + sum(_steps(stage.settings["refine"], rows) for rows in iterations)


def _steps(training: Training, rows: int) -> int:
    all_rows = rows / (1.0 - getattr(training, "seed_replay", 0.0))
    return math.ceil(all_rows / training.global_batch_size) * training.num_train_epochs


def checkpoints_of(stage: Stage, recipe: AnyRecipe, sharding: Sharding | None) -> Checkpoints:
    """The checkpoints of a training stage; those of a large model are few, unless the recipe says otherwise.

    Args:
        sharding: how the training is shared out; None where that is not known.
    """
    size, steps = _size(stage, recipe, sharding), steps_of(stage)
    large = size is not None and size > LARGE
    every = stage.settings["training"].save_steps
    if every is None:
        every = max(SAVE_STEPS, 1000 if steps is None else math.ceil(steps / 2)) if large else SAVE_STEPS
    kept = recipe.storage.checkpoints_while_training or (1 if large else KEPT)
    most = kept + 1 if steps is None else min(kept + 1, (steps - 1) // every)
    return Checkpoints(every, kept, size, most)


def _size(stage: Stage, recipe: AnyRecipe, sharding: Sharding | None) -> int | None:
    shape, lora = shape_of(recipe), recipe.model.lora
    if shape is None:
        return None
    trained = shape.parameters if lora is None else shape.adapter_parameters(lora)
    return trained * bytes_per_parameter(sharding, weight_bytes(recipe.model.dtype))


def bytes_per_parameter(sharding: Sharding | None, weight: int) -> int:
    """Bytes of a checkpoint per trained parameter; the most of all ways of sharding where that is not known.

    ZeRO-2 writes the module's weights, which every process has, twice besides: as its own and as transformers'.

    Args:
        weight: bytes of a weight in the precision of the model.
    """
    if sharding is None:
        return STATE_BYTES + 2 * 4
    return STATE_BYTES + (2 * weight if sharding == "zero2" else 0)
