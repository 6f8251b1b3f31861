"""What a policy's weights differ by from its reference's: the direction that the judge differentiates along."""

import math
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from spa_recipes.algo.tangents import Move, Thin
from spa_recipes.errors import DataError, StageError
from spa_recipes.models.forward_mode import NoForwardModeError
from spa_recipes.models.lora_files import read_lora
from spa_recipes.models.weight_files import weight_files


class NoUpdateError(StageError):
    """Policy and reference have equal weights."""


Read = Callable[[str], torch.Tensor]
Whole = Callable[[torch.Tensor], torch.Tensor]


class Update(NamedTuple):
    """Policy minus reference.

    Attributes:
        moves: by the name of a parameter of the reference, for those that differ; times `scale`.
        scale: a power of two that lifts the differences into float16's range; 1 in other precisions.
    """

    moves: dict[str, Move]
    scale: float


def difference(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    *,
    stored: PreTrainedModel | None = None,
    whole: Whole = torch.Tensor.detach,
) -> Update:
    """The stored difference of two models, computed in float32 at least and kept in the reference's precision.

    The difference of two numbers of one precision is exact in it where they are within a factor of two of each other.

    Args:
        stored: the reference in the precision of its file, where `reference` was loaded in a lower one: what that took
            from the weights is no part of the update.
        whole: gives a parameter of the policy as a whole tensor, where a process has a share of it.

    Raises:
        StageError: names or shapes of weights differ, or no weight does.
    """
    weights = policy.state_dict()
    parameters = dict(policy.named_parameters(remove_duplicate=False))

    def read(name: str) -> torch.Tensor:
        return whole(parameters[name]) if name in parameters else weights[name]

    return _update(reference, set(weights), read, "", stored)


def stored_difference(folder: Path, reference: PreTrainedModel, *, stored: PreTrainedModel | None = None) -> Update:
    """`difference` for a policy in a folder (safetensors), which is read tensor by tensor and never whole in memory.

    Raises:
        DataError: there are no such files, or they cannot be read.
        StageError: as `difference`.
    """
    with ExitStack() as stack:
        try:
            found = {
                name: file
                for path in weight_files(folder)
                for file in [stack.enter_context(safe_open(path, framework="pt"))]
                for name in file.keys()  # noqa: SIM118
            }
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise DataError(
                f"cannot read the policy's weights: {error}", where=str(folder), fix="give a folder with safetensors"
            ) from error
        return _update(reference, set(found), lambda name: found[name].get_tensor(name), str(folder), stored)


def adapter_update(folder: Path, reference: PreTrainedModel) -> Update:
    """A peft LoRA adapter over the reference, as thin factors: s*B*A, never multiplied out.

    Raises:
        DataError, StageError: as `read_lora`.
        StageError: it does not fit the reference.
    """
    lora = read_lora(folder)
    parameters = dict(reference.named_parameters())
    moves: dict[str, Move] = {}
    for module, (down, up) in lora.factors.items():
        if lora.config.get("fan_in_fan_out"):  # the weight is stored as (I, O)
            up, down = down.T, up.T
        weight = parameters.get(f"{module}.weight")
        if weight is None or (len(up), down.shape[1]) != tuple(weight.shape):
            raise StageError(
                f"the adapter does not fit the reference: {module}.weight "
                + ("is not among its weights" if weight is None else f"has shape {list(weight.shape)}"),
                where=str(folder),
                fix="give the base model that the adapter was trained on",
            )
        thin = Thin(down.to(weight.device), lora.scale * up.to(weight.device, torch.float32))
        moves[f"{module}.weight"] = thin
    return _scaled(moves, parameters, str(folder))


def trained_adapter(
    model: PreTrainedModel, *, onto: PreTrainedModel | None = None, whole: Whole = torch.Tensor.detach
) -> Update:
    """The LoRA adapter that is trained inside a model, as thin factors.

    Args:
        model: with peft's layers, without peft's wrapper.
        onto: the same model without adapters, whose weights the update moves; None: those inside `model`.
        whole: as in `difference`.

    Raises:
        NoForwardModeError: an adapter is not on a linear layer.
        NoUpdateError: all adapters are still 0.
    """
    from peft.tuners.lora import LoraLayer

    moves: dict[str, Move] = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        (adapter,) = layer.active_adapters
        if adapter not in layer.lora_A:
            raise NoForwardModeError(f"{name} has an adapter and is no linear layer")
        down, up = (whole(part[adapter].weight) for part in (layer.lora_A, layer.lora_B))
        if bool(up.any()):
            up = layer.scaling[adapter] * up
            # with `fan_in_fan_out` the weight is stored as (I, O)
            weight = f"{name}.weight" if onto is not None else f"{name}.base_layer.weight"
            moves[weight] = Thin(up.T, down.T) if layer.fan_in_fan_out else Thin(down, up)
    return _scaled(moves, dict((onto or model).named_parameters()), "")


def _update(
    reference: PreTrainedModel, names: set[str], read: Read, where: str, stored_reference: PreTrainedModel | None = None
) -> Update:
    """Policy minus reference, weight by weight; a weight with several names is tied."""
    aliases: dict[int, list[str]] = {}
    for name, weight in [*reference.named_parameters(remove_duplicate=False), *reference.named_buffers()]:
        aliases.setdefault(id(weight), []).append(name)
    stored = set(reference.state_dict())
    groups = [[name for name in group if name in stored] for group in aliases.values()]
    groups = [group for group in groups if group]
    _refuse_names([group for group in groups if not names & set(group)], names - stored, where)
    parameters = dict(reference.named_parameters())
    weights = (stored_reference or reference).state_dict()
    moves: dict[str, Move] = {}
    for group in groups:
        moved = [_move(read(name), weights[name], name, where) for name in group if name in names]
        if any(not torch.equal(moved[0], other) for other in moved[1:]):
            raise StageError(
                f"the reference ties {' and '.join(group)}, and the policy does not",
                where=where,
                fix="give two models of the same architecture",
            )
        if not bool(moved[0].any()):
            continue
        if group[0] not in parameters:
            raise StageError(f"policy and reference differ in {group[0]}, which is no weight", where=where)
        weight = parameters[group[0]]
        # What will be lifted stays in float32 until all sizes are known; all else need not be in memory twice as large.
        moves[group[0]] = moved[0] if weight.dtype == torch.float16 else moved[0].to(weight)
    return _scaled(moves, parameters, where)


def _refuse_names(missing: list[list[str]], unexpected: set[str], where: str) -> None:
    for names, whose in ((sorted(group[0] for group in missing), "reference"), (sorted(unexpected), "policy")):
        if names:
            raise StageError(
                f"policy and reference have different weights: only the {whose} has {names[0]}"
                + (f" and {len(names) - 1} more" if names[1:] else ""),
                where=where,
                fix="give two models of the same architecture",
            )


def _move(policy: torch.Tensor, reference: torch.Tensor, name: str, where: str) -> torch.Tensor:
    if policy.shape != reference.shape:
        raise StageError(
            f"policy and reference have different shapes: {name} is {list(policy.shape)} and {list(reference.shape)}",
            where=where,
            fix="give two models of the same architecture and vocabulary",
        )
    at_least = torch.promote_types(torch.promote_types(policy.dtype, reference.dtype), torch.float32)
    move = policy.to(reference.device, at_least) - reference.to(at_least)
    if not bool(move.isfinite().all()):
        whose = "reference" if bool(policy.isfinite().all()) else "policy"
        raise StageError(
            f"a weight of the {whose} is NaN or infinite: {name}",
            where=where if whose == "policy" else "",
            fix="look at how the model was made",
        )
    # The difference of two half-precision numbers is kept in half precision where that is exact, or the best there is.
    return move


def _scaled(moves: dict[str, Move], parameters: dict[str, torch.nn.Parameter], where: str) -> Update:
    """The moves in the precision of the weights that they move, lifted where that is float16."""
    if not moves:
        raise NoUpdateError(
            "policy and reference have equal weights, so all their log-ratios are 0",
            where=where,
            fix="give another policy or reference",
        )
    exponent = 0
    if any(parameters[name].dtype == torch.float16 for name in moves):
        # Tangents are then an eighth of the values in size: float16 holds both, and small differences stay normal.
        sizes = [(_rms(parameters[name]), _rms(move)) for name, move in moves.items()]
        exponent = min(math.floor(math.log2(weight / size)) for weight, size in sizes if weight > 0 and size > 0) - 3
    scale = 2.0**exponent
    return Update({name: _times(move, scale, parameters[name]) for name, move in moves.items()}, scale)


def _rms(move: Move) -> float:
    """Root mean square of a weight or of a direction; of a thin one, that of independent factors."""
    if isinstance(move, Thin):
        return _rms(move.down) * _rms(move.up) * math.sqrt(len(move.down))
    assert move is not None
    return float(move.detach().float().square().mean().sqrt())


def _times(move: Move, scale: float, weight: torch.Tensor) -> Move:
    """A multiple of a direction, in the precision and on the device of the weight that it moves."""
    if isinstance(move, Thin):
        return Thin(move.down.to(weight), (move.up * scale).to(weight))
    assert move is not None
    return (move * scale).to(weight)
