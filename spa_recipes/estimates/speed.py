"""How long a stage takes: its products over those that a GPU does in a second, times the share that is reached."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from spa_recipes.estimates.hardware import Hardware
from spa_recipes.estimates.shape import Shape, shape_of
from spa_recipes.models.dtype import weight_bytes
from spa_recipes.plan import KINDS, Stage
from spa_recipes.recipe.schema import Sampling, VllmBackend

if TYPE_CHECKING:
    from spa_recipes.recipe.jobs import AnyRecipe


class Gpu(NamedTuple):
    """What its maker says of a GPU: dense products in half precision a second, and bytes read from memory a second."""

    flops: float
    bandwidth: float


GPUS: dict[str, Gpu] = {
    "B200": Gpu(2250e12, 8.0e12),
    "MI300X": Gpu(1307e12, 5.3e12),
    "H200": Gpu(989e12, 4.8e12),
    "H100": Gpu(989e12, 3.35e12),
    "A100": Gpu(312e12, 2.0e12),
    "L40S": Gpu(362e12, 0.86e12),
    "RTX 4090": Gpu(165e12, 1.0e12),
    "RTX 3090": Gpu(71e12, 0.94e12),
    "A10": Gpu(125e12, 0.6e12),
    "L4": Gpu(121e12, 0.3e12),
    "V100": Gpu(125e12, 0.9e12),
    "T4": Gpu(65e12, 0.32e12),
}
"""By a part of the name that the driver gives, the most telling first."""

BY_MEMORY = {24: "RTX 4090", 40: "A100", 48: "L40S", 80: "H100", 141: "H200", 192: "MI300X"}
"""The GPU that is assumed where a recipe names its memory in GB alone."""

SCORING = 0.60
"""Share of the products that a scoring pass reaches: measured, one H200, 7.38 billion parameters."""
TRAINING = 0.35
"""The same of a training. Assumed."""
DECODING = {"vllm": 0.2, "transformers": 0.05}
"""Share of the steps that memory would allow, while sampling. Assumed."""
VLLM_ROWS = 256
"""Texts that vLLM samples at the same time, by default."""


def gpu_of(hardware: Hardware) -> tuple[str, Gpu] | None:
    """The row of `GPUS` for a machine; None for one that is not in it."""
    if hardware.model:
        name = next((name for name in GPUS if name in hardware.model), None)
    else:
        name = BY_MEMORY.get(hardware.memory // 2**30)
    return None if name is None else (name, GPUS[name])


def seconds_of(stage: Stage, recipe: AnyRecipe, tokens: int | None, hardware: Hardware) -> float | None:
    """Time of a stage with so many tokens; None where the size of the model, the tokens or the GPU are not known."""
    found, shape = gpu_of(hardware), shape_of(recipe)
    work = KINDS[stage.kind].work
    if found is None or shape is None or tokens is None or not work:
        return None
    _, gpu = found
    if "train" in work:
        passes = _passes_of_training(stage, recipe)
        return 2 * passes * shape.active * tokens / (TRAINING * gpu.flops * hardware.gpus)
    seconds = 0.0
    if isinstance(sampling := stage.settings.get("sampling"), Sampling):
        seconds += _sampling_seconds(sampling, recipe, shape, tokens, gpu, hardware.gpus)
    if "score" in work:
        models = 3 if "method" in stage.settings else 1
        seconds += 2 * models * shape.active * tokens / (SCORING * gpu.flops * hardware.gpus)
    return seconds


def _passes_of_training(stage: Stage, recipe: AnyRecipe) -> float:
    """Forward passes that a token costs: a backward pass counts as two, and one with frozen weights as one."""
    passes = 3.0 if recipe.model.lora is None else 2.0
    if stage.settings["training"].gradient_checkpointing:
        passes += 1.0
    if KINDS[stage.kind].module == "dpo" or stage.settings.get("lambda", 0):
        passes += 1.0  # the reference's
    if "p_detect" in stage.settings:
        passes += 1.5  # the derivative's
    return passes


def _sampling_seconds(sampling: Sampling, recipe: AnyRecipe, shape: Shape, tokens: int, gpu: Gpu, gpus: int) -> float:
    """Each step reads all weights once, for as many texts as are sampled at the same time."""
    backend = sampling.backend
    rows = VLLM_ROWS if isinstance(backend, VllmBackend) else backend.batch_size
    step = weight_bytes(recipe.model.dtype) * shape.active / (gpu.bandwidth * DECODING[backend.type])
    return step * tokens / (rows * gpus)
