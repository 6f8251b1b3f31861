"""What a stage will need, before it runs: upper bounds for tokens, memory and disk, from sizes alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from spa_recipes.estimates.checkpoints import Checkpoints, checkpoints_of, steps_of
from spa_recipes.estimates.hardware import Hardware
from spa_recipes.estimates.memory import (
    FLOAT32,
    Memory,
    Sharding,
    host_memory,
    reading_memory,
    sequences_of_row,
    training_memory,
)
from spa_recipes.estimates.shape import parameters_of
from spa_recipes.models.dtype import weight_bytes
from spa_recipes.plan import KINDS, MODEL, Plan, Stage
from spa_recipes.recipe.schema import AccelerateExecutor, ForkExecutor, LocalExecutor

if TYPE_CHECKING:
    from spa_recipes.recipe.jobs import AnyRecipe

BYTES_PER_SAMPLED_TOKEN = 8
"""On the disk: its id, and its log-prob."""


class Need(NamedTuple):
    """Upper bounds; None where the recipe does not tell.

    Attributes:
        tokens: tokens generated, scored or trained on.
        steps: optimizer steps.
        sharding: how a training is shared out over its processes.
        memory: of each device.
        host: bytes of the machine's own memory, for weights that are loaded and saved.
        disk: bytes that the stage leaves.
        scratch: bytes that it needs besides while it runs.
        checkpoints: what a training saves while it runs.
    """

    tokens: int | None = None
    memory: Memory | None = None
    host: int | None = None
    disk: int | None = None
    scratch: int | None = None
    steps: int | None = None
    checkpoints: Checkpoints | None = None
    sharding: Sharding = "none"


def processes_of(recipe: AnyRecipe) -> int:
    """Processes that train together."""
    return recipe.compute.executor.training_processes


def sharding_of(stage: Stage, recipe: AnyRecipe, hardware: Hardware | None) -> Sharding | None:
    """How a training is shared out over its processes; None where accelerate's own configuration says it.

    Args:
        hardware: where it works; None is the CPU, on which nothing is shared out unless the recipe says so. Nodes of a
            cluster whose memory is not known share out what they can.
    """
    executor, processes = recipe.compute.executor, processes_of(recipe)
    if isinstance(executor, LocalExecutor | ForkExecutor):
        return "none"
    if isinstance(executor, AccelerateExecutor) and executor.config_file is not None:
        return None
    if executor.sharding != "auto":
        return executor.sharding
    if processes == 1:
        return "none"
    if hardware is None:
        on_gpus = not isinstance(executor, AccelerateExecutor) and executor.gpus_per_node > 0
        return "fsdp2" if on_gpus else "none"
    whole = training_memory(stage, recipe, sharding="none", processes=processes)
    return "none" if whole is None or whole.total <= hardware.memory else "fsdp2"


def needs(stage: Stage, plan: Plan, hardware: Hardware | None = None) -> Need:
    """Upper bounds for one stage of a plan; `hardware` as in `sharding_of`."""
    recipe = plan.recipe
    size, each = parameters_of(recipe), weight_bytes(recipe.model.dtype)
    weights = None if size is None else size * each
    kind, tokens = KINDS[stage.kind], _tokens(stage, recipe)
    if "train" in kind.work:
        sharding, processes = sharding_of(stage, recipe, hardware), processes_of(recipe)
        checkpoints = checkpoints_of(stage, recipe, sharding)
        # Those of adapters are small.
        scratch = None if checkpoints.size is None or recipe.model.lora else checkpoints.most * checkpoints.size
        need = Need(tokens, disk=weights, scratch=scratch, steps=steps_of(stage), checkpoints=checkpoints)
        if sharding is None:
            return need
        return need._replace(
            sharding=sharding,
            memory=training_memory(stage, recipe, sharding=sharding, processes=processes),
            host=host_memory(stage, recipe, sharding=sharding, processes=processes),
        )
    if MODEL in kind.writes:
        # An extrapolation holds both models in float32, and what it stores.
        memory = None
        if size is not None and "factor" in stage.settings:
            memory = Memory(2 * FLOAT32 * size + each * size)
        return Need(memory=memory, disk=weights)
    # A judge that the recipe names has a size of its own.
    reads = kind.loads_model and "judge" not in map(kind.content, stage.inputs)
    sampled = tokens if "sample" in kind.work else None
    return Need(
        tokens,
        memory=reading_memory(stage, recipe) if reads else None,
        disk=None if sampled is None else sampled * BYTES_PER_SAMPLED_TOKEN,
    )


def _tokens(stage: Stage, recipe: AnyRecipe) -> int | None:
    """Tokens of all rows, each as long as the settings allow; of training in all epochs."""
    if stage.rows is None:
        return None
    match KINDS[stage.kind].tokens:
        case "text":
            each = recipe.model.max_length
        case "pair":
            each = sequences_of_row(stage, recipe) * recipe.model.max_length
        case "answer":
            each = stage.settings["sampling"].max_tokens
        case "verdict":
            each = stage.settings["judge"].max_tokens
        case None:
            return None
    training = stage.settings.get("training")
    if training is None:
        return stage.rows * each
    if "iterations" in stage.settings and (steps := steps_of(stage)) is not None:
        batch: int = training.global_batch_size  # of a control, whose last pass need not be a whole one
        return min(stage.rows, batch) * steps * each
    passes: int = training.num_train_epochs
    return stage.rows * each * passes
