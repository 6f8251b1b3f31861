"""The files of a LoRA adapter as peft writes them: reading one, and laying one trained later on top of another."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from spa_recipes.errors import DataError, StageError
from spa_recipes.models.lora_names import CONFIG, WEIGHTS
from spa_recipes.state import atomic

_TRAINED_ON, _NF4 = "trained_on", "nf4"  # in the metadata of the weights' file, which peft and vLLM leave alone
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


def is_on_4bit(folder: Path) -> bool:
    """Whether an adapter was trained on weights in 4 bits, as `stack_up` wrote it down.

    Raises:
        DataError: there is no adapter, or it cannot be read.
    """
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            return (file.metadata() or {}).get(_TRAINED_ON) == _NF4
    except (OSError, SafetensorError) as error:
        raise DataError(f"cannot read the adapter: {error}", where=str(folder / WEIGHTS)) from error


def stack_up(adapter: Path, below: Path | None) -> None:
    """Make an adapter that was trained on weights in 4 bits the sum of the one below it and itself, in place.

    The factors are joined; ranks and alphas add up. Where both have one scale, it stays, and so does each number. The
    file says that it belongs on weights in 4 bits.

    Args:
        below: what was trained before on the same weights; None where this is the first one.

    Raises:
        DataError, StageError: as `read_lora`.
        StageError: the two are on different modules.
    """
    config, tensors = _joined(read_lora(adapter), None if below is None else read_lora(below), str(below))
    save_file(tensors, adapter / WEIGHTS, metadata={_TRAINED_ON: _NF4})  # one key: the order of several is random
    atomic.write_json(adapter / CONFIG, config)


def _joined(lora: LoraFiles, below: LoraFiles | None, where: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Configuration and tensors of two adapters' sum."""
    parts = [lora] if below is None else [below, lora]
    if any(part.factors.keys() != lora.factors.keys() for part in parts):
        raise StageError(
            "the adapter that was trained before is on other modules than this one",
            where=where,
            fix="train all iterations with the same model.lora",
        )
    config = {**lora.config, **{key: sum(part.config[key] for part in parts) for key in ("r", "lora_alpha")}}
    scale = config["lora_alpha"] / config["r"]
    tensors = {}
    for module in lora.factors:
        downs, ups = zip(*(part.factors[module] for part in parts), strict=True)
        ups = tuple(_times(up, part.scale / scale) for up, part in zip(ups, parts, strict=True))
        tensors[_PREFIX + module + _DOWN] = torch.cat(downs).contiguous()
        tensors[_PREFIX + module + _UP] = torch.cat(ups, dim=1).contiguous()
    return config, tensors


def _times(up: torch.Tensor, factor: float) -> torch.Tensor:
    return up if factor == 1.0 else (up.double() * factor).to(up.dtype)
