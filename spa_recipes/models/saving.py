"""Saving a trained model: one way for all trainings."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig, PreTrainedModel

from spa_recipes.models.loading import revision_of
from spa_recipes.recipe.schema import Model
from spa_recipes.state import atomic


def save_model(
    model: PreTrainedModel,
    state_dict: dict[str, torch.Tensor],
    tokenizer: Any,
    folder: Path,
    *,
    source: Path | str,
    settings: Model,
    dtype: torch.dtype,
) -> None:
    """Write weights (safetensors), configuration, generation configuration and tokenizer.

    The configurations are those of the model that was trained from: trainers write their own pad and end tokens into
    the ones in memory.

    Args:
        state_dict: all weights, on any device.
        source: place of the model before the training.
        settings: as `source` was loaded with.
        dtype: precision of the saved weights.
    """
    revision = revision_of(source, settings)
    model.config = AutoConfig.from_pretrained(
        str(source), revision=revision, trust_remote_code=settings.trust_remote_code
    )
    with suppress(OSError):  # a model need not have one
        model.generation_config = GenerationConfig.from_pretrained(str(source), revision=revision)
    for tied, kept in model.all_tied_weights_keys.items():  # a sharded model hands out two copies
        if kept in state_dict:
            state_dict.pop(tied, None)
    model.save_pretrained(folder, state_dict=_cast(state_dict, dtype))
    _declare_dtype(folder / "config.json", dtype)
    tokenizer.save_pretrained(str(folder))


def _cast(state_dict: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Floating-point tensors in another precision; tied tensors stay one tensor."""
    done: dict[tuple[int, torch.Size], torch.Tensor] = {}
    for tensor in state_dict.values():
        place = (tensor.data_ptr(), tensor.shape)
        if place not in done:
            done[place] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return {name: done[(tensor.data_ptr(), tensor.shape)] for name, tensor in state_dict.items()}


def _declare_dtype(config_file: Path, dtype: torch.dtype) -> None:
    """transformers writes the precision of the model in memory, which is that of the training."""
    config = json.loads(config_file.read_text())
    config["dtype"] = str(dtype).removeprefix("torch.")
    atomic.write_json(config_file, config)
