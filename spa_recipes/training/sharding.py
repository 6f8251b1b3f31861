"""Trainings whose weights are shared out over processes, by FSDP2 or by DeepSpeed's ZeRO.

What leaves a model's forward pass is what the model computed: log-probs in float32. By default FSDP2 would round them
to the precision of its products.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.state import AcceleratorState
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.integrations.deepspeed import (
    is_deepspeed_zero3_enabled,
    set_hf_deepspeed_config,
    unset_hf_deepspeed_config,
)

from spa_recipes.errors import StageError
from spa_recipes.training.env import Sharding

LONGEST_WAIT_SECONDS = 24 * 3600
"""How long processes wait for each other: the first one alone merges, rounds, hashes and writes what may be 100 GB. A
process that is lost ends the others through the launcher, and `compute.stall_minutes` says when nothing moves."""

_ASKED = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
"""Variables by which accelerate's launcher says what its configuration asks for."""


def sharding_arguments(sharding: Sharding) -> dict[str, Any]:
    """The arguments of transformers' trainers for a way of sharding."""
    if sharding == "none":
        return {}
    if sharding == "fsdp2":
        # Every process loads the weights: where only the first one does, TRL's reference would be zeros elsewhere.
        settings = {"version": 2, "cpu_ram_efficient_loading": False, "state_dict_type": "SHARDED_STATE_DICT"}
        return {"fsdp": True, "fsdp_config": settings}
    from_arguments = ("gradient_accumulation_steps", "gradient_clipping", "train_micro_batch_size_per_gpu")
    return {
        "deepspeed": {
            "zero_optimization": {"stage": 3 if sharding == "zero3" else 2},
            "bf16": {"enabled": "auto"},
            "fp16": {"enabled": "auto"},
            "train_batch_size": "auto",
            **dict.fromkeys(from_arguments, "auto"),
        }
    }


def in_use() -> str:
    """How the training of this process is sharded, as `compute.executor.sharding` spells it; `none` without one."""
    if not AcceleratorState._shared_state:  # making one now would choose how this process trains
        return "none"
    state = AcceleratorState()
    if state.distributed_type == DistributedType.FSDP:
        return f"fsdp{state.fsdp_plugin.fsdp_version}"
    if state.distributed_type == DistributedType.DEEPSPEED:
        return f"zero{state.deepspeed_plugin.zero_stage}"
    return "none"


def checkpoint_form() -> str:
    """Which of its two forms of checkpoints FSDP writes; empty for all others."""
    state = AcceleratorState()
    return str(state.fsdp_plugin.state_dict_type.name) if state.distributed_type == DistributedType.FSDP else ""


def is_sharded() -> bool:
    """Whether this process trains with FSDP or DeepSpeed."""
    return in_use() != "none"


def shards_weights() -> bool:
    """Whether the weights themselves are shared out."""
    return in_use() in ("fsdp2", "zero3")


def is_loaded_in_shares() -> bool:
    """Whether this process lacks weights of a model that it has loaded, already before the training starts."""
    if in_use() == "fsdp2":
        return bool(AcceleratorState().fsdp_plugin.cpu_ram_efficient_loading)
    return in_use() == "zero3"


def settle(accelerator: Accelerator, args: TrainingArguments) -> None:
    """Check how a trainer's accelerator shards, and let FSDP2 round nothing that leaves the model.

    Where nothing is shared out, torch's DistributedDataParallel sums the gradients over processes in the place where
    they stay, instead of in a second copy of them all. With several micro-batches per step there are still two: those
    of the earlier ones are not in that place.

    Raises:
        StageError: it does not shard though the arguments say so, or by FSDP1.
    """
    used = in_use()
    if used == "none" and (args.fsdp or args.deepspeed or any(os.environ.get(name) == "true" for name in _ASKED)):
        raise StageError(
            "the weights cannot be shared out here: accelerate does so on GPUs only",
            where="compute.executor",
            fix="set sharding to none and leave config_file out, or use a machine with GPUs",
        )
    if used == "none":
        accelerator.ddp_handler.gradient_as_bucket_view = True
    if used == "fsdp1":
        raise StageError(
            "FSDP1 is not supported", where="compute.executor.config_file", fix="set fsdp_version: 2 in it"
        )
    if used == "fsdp2" and accelerator.state.fsdp_plugin.mixed_precision_policy is not None:
        from torch.distributed.fsdp import MixedPrecisionPolicy

        products = accelerator.state.fsdp_plugin.mixed_precision_policy.param_dtype
        # Gradients are summed over processes in the precision of the weights that they change.
        policy = MixedPrecisionPolicy(param_dtype=products, reduce_dtype=torch.float32, output_dtype=None)
        accelerator.state.fsdp_plugin.mixed_precision_policy = policy


def shard_frozen(model: PreTrainedModel, accelerator: Accelerator) -> None:
    """Share a model that is not trained out layer by layer, as FSDP2 does the trained one; TRL would do it as a whole,
    and gather it as a whole in every forward pass.
    """
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    model.requires_grad_(False)
    fsdp2_prepare_model(accelerator, model)


@contextmanager
def loading_whole(args: TrainingArguments) -> Iterator[None]:
    """Inside, this process loads models whole, though ZeRO-3 shares out what the training loads."""
    shared_out = is_deepspeed_zero3_enabled()
    if shared_out:
        unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if shared_out:
            set_hf_deepspeed_config(args.hf_deepspeed_config)


@contextmanager
def torchs_own_linear() -> Iterator[None]:
    """Inside, linear layers multiply as torch does.

    Loading with ZeRO-3 replaces that for the whole process, by an operation that has no derivative in forward mode.
    """
    replaced = torch.nn.functional.linear
    torch.nn.functional.linear = torch._C._nn.linear
    try:
        yield
    finally:
        torch.nn.functional.linear = replaced


def whole_weights(trainer: Trainer, *, trained_only: bool) -> dict[str, torch.Tensor]:
    """The weights in the precision of the training, on the CPU of the first process, gathered by all of them.

    Args:
        trained_only: leave out what does not change, as all but the adapters does with LoRA.

    Returns:
        Tensors by their names in the model; nothing on the other processes.
    """
    keep = trainer.is_world_process_zero()
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    parameters = {name: weight for name, weight in model.named_parameters() if weight.requires_grad or not trained_only}
    if not is_sharded():
        stored: dict[str, torch.Tensor] = model.state_dict() if keep else {}
        return {name: tensor for name, tensor in stored.items() if name in parameters or not trained_only}
    weights: dict[str, torch.Tensor] = {}
    for name, parameter in parameters.items():
        tensor = whole_weight(parameter)
        if keep:
            weights[name] = tensor.to("cpu", copy=True)
    if not keep or trained_only:
        return weights
    own = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return weights | {name: tensor for name, tensor in model.state_dict().items() if name not in own}


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that FSDP2 has shared out, gathered; every process has to call it. Others are whole already."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_weight(parameter: torch.Tensor) -> torch.Tensor:
    """A trained weight in the precision of the training, gathered; every process has to call it.

    DeepSpeed's module may hold a copy of it that is rounded to nearest; its optimizer has the weight itself.
    """
    if in_use().startswith("zero"):
        from deepspeed.utils import safe_get_full_fp32_param

        weight: torch.Tensor = safe_get_full_fp32_param(parameter)
        return weight.detach()
    return whole(parameter.detach())
