"""The files of a LoRA adapter as peft writes them: reading one, and laying one trained later on top of another."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from spa_recipes.errors import DataError, StageError
from spa_recipes.state import atomic

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_PREFIX, _DOWN, _UP = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


class LoraFiles(NamedTuple):
    """A plain LoRA adapter: W x becomes W x + scale * B (A x).

    Attributes:
        config: as peft writes it.
        factors: (A, B) of shapes (R, I) and (O, R) by the name of the module that they are added to, sorted.
        scale: lora_alpha over the rank, or over its root.
    """

    config: dict[str, Any]
    factors: dict[str, tuple[torch.Tensor, torch.Tensor]]
    scale: float


def read_lora(folder: Path) -> LoraFiles:
    """Read an adapter.

    Raises:
        DataError: there is none, or it cannot be read.
        StageError: it holds more than plain LoRA.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        rank, alpha = float(config["r"]), float(config["lora_alpha"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise DataError(
            f"cannot read the adapter: {error}", where=str(folder), fix=f"give a folder with {CONFIG} and {WEIGHTS}"
        ) from error
    beyond = [key for key in ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save") if config.get(key)]
    beyond += [name for name in sorted(tensors) if not name.endswith((_DOWN, _UP))][:1]
    if config.get("peft_type") != "LORA" or beyond:
        what = beyond[0] if beyond else f"peft_type {config.get('peft_type')}"
        raise StageError(f"the adapter is not plain LoRA: {what}", where=str(folder), fix="merge it into its base")
    stems = [name.removesuffix(_DOWN) for name in sorted(tensors) if name.endswith(_DOWN)]
    factors = {stem.removeprefix(_PREFIX): (tensors[stem + _DOWN], tensors[stem + _UP]) for stem in stems}
    return LoraFiles(config, factors, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def put_before(below: Path, adapter: Path) -> None:
    """Make an adapter the sum of one that was trained before and itself, in place: the factors are joined.

    Ranks and alphas add up. Where both have one scale, it stays, and so does each number.

    Raises:
        DataError, StageError: as `read_lora`.
        StageError: the two are on different modules, or in different forms.
    """
    first, second = read_lora(below), read_lora(adapter)
    form = ("use_rslora", "fan_in_fan_out")
    if first.factors.keys() != second.factors.keys() or any(
        bool(first.config.get(key)) != bool(second.config.get(key)) for key in form
    ):
        raise StageError(
            "the adapter that was trained before is on other modules than this one",
            where=str(below),
            fix="train all iterations with the same model.lora",
        )
    config = {**second.config, **{key: first.config[key] + second.config[key] for key in ("r", "lora_alpha")}}
    rank = math.sqrt(config["r"]) if config.get("use_rslora") else config["r"]
    scale = config["lora_alpha"] / rank
    tensors = {}
    for module, (down, up) in second.factors.items():
        down_before, up_before = first.factors[module]
        ups = [_times(up_before, first.scale / scale), _times(up, second.scale / scale)]
        tensors[_PREFIX + module + _DOWN] = torch.cat([down_before, down]).contiguous()
        tensors[_PREFIX + module + _UP] = torch.cat(ups, dim=1).contiguous()
    save_file(tensors, adapter / WEIGHTS, metadata={"format": "pt"})
    atomic.write_json(adapter / CONFIG, config)


def _times(up: torch.Tensor, factor: float) -> torch.Tensor:
    return up if factor == 1.0 else (up.double() * factor).to(up.dtype)
