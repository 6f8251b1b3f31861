"""Saving a trained model: one way for all trainings.

What is saved is the policy of the method: it is sampled from, judges, and is the start and the reference of the next
stage. So where its precision is lower than the training's, weights are rounded stochastically: see `rounding`.
"""

import json
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig, PreTrainedModel

from spa_recipes.errors import StageError
from spa_recipes.models.dtype import dtype_name
from spa_recipes.models.loading import local_device, revision_of
from spa_recipes.models.rounding import Update, stochastic
from spa_recipes.recipe.schema import Model
from spa_recipes.state import atomic


@dataclass(frozen=True)
class Weights:
    """The weights of a trained model, on any device.

    Attributes:
        tensors: all tensors by name; tied ones are one tensor.
        sums: what stands in place of some of them, made when it is needed: the weights with their adapter.
        start: the tensors before the training, which the update is measured against; None measures nothing.
    """

    tensors: dict[str, torch.Tensor]
    sums: Mapping[str, Callable[[], torch.Tensor]] = field(default_factory=dict)
    start: Mapping[str, torch.Tensor] | None = None

    def trained(self, name: str) -> torch.Tensor:
        """A tensor after the training."""
        return self.sums[name]() if name in self.sums else self.tensors[name]


def save_model(
    model: PreTrainedModel,
    weights: Weights,
    tokenizer: Any,
    folder: Path,
    *,
    source: Path | str,
    settings: Model,
    dtype: torch.dtype,
    key: str,
) -> dict[str, float]:
    """Write weights (safetensors), configuration, generation configuration and tokenizer.

    The configurations are those of the model that was trained from: trainers write their own pad and end tokens into
    the ones in memory.

    Args:
        source: place of the model before the training.
        settings: as `source` was loaded with.
        dtype: precision of the saved weights.
        key: chooses the random bits of stochastic rounding.

    Returns:
        What the saved model keeps of the update: the figures of `rounding.Update`; none in float32.

    Raises:
        StageError: a weight is NaN or infinite, or too large for `dtype`.
    """
    revision = revision_of(source, settings)
    model.config = AutoConfig.from_pretrained(
        str(source), revision=revision, trust_remote_code=settings.trust_remote_code
    )
    with suppress(OSError):  # a model need not have one
        model.generation_config = GenerationConfig.from_pretrained(str(source), revision=revision)
    unsaved = _unsavable(model)
    for tied, kept in model.all_tied_weights_keys.items():  # a sharded model hands out two copies
        if kept in weights.tensors:
            weights.tensors.pop(tied, None)
    update = Update()
    state_dict = _rounded(weights, dtype, update, key=None if settings.save_rounding == "nearest" else key)
    model.save_pretrained(folder, state_dict=state_dict)
    if unsaved is not None:
        atomic.write_json(folder / "generation_config.json", unsaved)
    _declare_dtype(folder / "config.json", dtype)
    tokenizer.save_pretrained(str(folder))
    return update.figures()


def _unsavable(model: PreTrainedModel) -> dict[str, Any] | None:
    """The generation configuration of a model where transformers refuses to save it, which then saves a default one.

    Such ones are published, a temperature beside `do_sample: false`; they say nothing that is used here but the ends.
    """
    try:
        model.generation_config.validate(strict=True)
    except ValueError:
        content: dict[str, Any] = model.generation_config.to_diff_dict()
        model.generation_config = GenerationConfig()
        return content
    return None


def _rounded(weights: Weights, dtype: torch.dtype, update: Update, *, key: str | None) -> dict[str, torch.Tensor]:
    """All tensors in another precision, added to `update`; tied ones stay one tensor. No key rounds to nearest."""
    done: dict[tuple[int, torch.Size], torch.Tensor] = {}
    for name, tensor in weights.tensors.items():
        place = (tensor.data_ptr(), tensor.shape)
        if place in done:
            continue
        trained = weights.trained(name)
        if not trained.is_floating_point():
            done[place] = trained
            continue
        trained = trained.to(local_device())  # a GPU rounds and measures in moments
        _refuse_misfits(name, trained, dtype)
        is_cut = trained.dtype.itemsize > dtype.itemsize
        rounded = stochastic(trained, dtype, key=key, name=name) if is_cut and key else trained.to(dtype)
        if weights.start is not None:
            update.add(weights.start[name], trained, rounded)
        done[place] = rounded.cpu()
    return {name: done[(tensor.data_ptr(), tensor.shape)] for name, tensor in weights.tensors.items()}


def _refuse_misfits(name: str, trained: torch.Tensor, dtype: torch.dtype) -> None:
    """A model with such a weight computes nothing but NaN."""
    largest = max(-trained.min().item(), trained.max().item()) if trained.numel() else 0.0
    if not math.isfinite(largest):
        raise StageError(
            f"the trained weights of {name} are NaN or infinite: the model is not saved",
            fix="lower the learning rate, or set model.dtype to float32; `spa resume` goes on from the last checkpoint",
        )
    if largest > torch.finfo(dtype).max:
        raise StageError(
            f"the trained weights of {name} go up to {largest:.3g}, too large for {dtype_name(dtype)}",
            fix="set model.dtype to bfloat16 or float32",
        )


def _declare_dtype(config_file: Path, dtype: torch.dtype) -> None:
    """transformers writes the precision of the model in memory, which is that of the training."""
    config = json.loads(config_file.read_text())
    config["dtype"] = dtype_name(dtype)
    atomic.write_json(config_file, config)
