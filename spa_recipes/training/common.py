"""What every training does: the trainer's arguments, a model ready to be trained, the loop, what is saved, figures."""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import torch
from accelerate.utils import broadcast_object_list
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from spa_recipes.errors import DataError, RecipeError, StageError
from spa_recipes.models.adapters import keep_or_drop, sums_with
from spa_recipes.models.causal import reads_lengths
from spa_recipes.models.dtype import dtype_name, torch_dtype
from spa_recipes.models.loading import local_device
from spa_recipes.models.lora_files import stack_up
from spa_recipes.models.products import fast_products
from spa_recipes.models.saving import Weights, save_model
from spa_recipes.recipe.schema import SAVE_STEPS, Model, Training
from spa_recipes.state import atomic
from spa_recipes.training.checkpoints import CheckpointCallback, check_launch, drop_unfinished, read_state, resume_point
from spa_recipes.training.env import OnProgress, TrainEnv, TrainResult
from spa_recipes.training.order import as_dataset, steps_per_epoch
from spa_recipes.training.preference import NoiseDetector
from spa_recipes.training.sharding import (
    LONGEST_WAIT_SECONDS,
    in_use,
    loading_whole,
    sharding_arguments,
    whole_weights,
)

TRAINING_LOG = "training_log.jsonl"
_REWARDS = ("chosen", "rejected", "margins", "accuracies")
LITTLE = 0.5
"""Below this share of an update that is kept or visible, a person is told."""

_ADAPTER = ".adapter"  # hidden, so that it is no output

Rows: TypeAlias = datasets.Dataset | Sequence[Mapping[str, Any]]


def checked_rows(rows: Rows, columns: tuple[str, ...]) -> datasets.Dataset:
    """The rows as a Dataset; DataError where there are none or a column is missing."""
    table = as_dataset(rows)
    missing = [name for name in columns if name not in table.column_names]
    if not len(table) or missing:
        raise DataError(f"the rows lack {', '.join(missing)}" if missing and len(table) else "no rows to train on")
    return table


def training_dtype(model: Model) -> torch.dtype:
    """Precision of the computation and of the saved model; RecipeError where this machine cannot train in it."""
    if model.dtype == "float16" and not torch.cuda.is_available():
        raise RecipeError("float16 training needs a GPU", where="model.dtype", fix="set float32, bfloat16 or auto")
    return torch_dtype(model.dtype)


def tolerance(dtype: torch.dtype) -> float:
    """Difference between two ways to compute a text's log-prob that rounding explains, as a share of it."""
    return 1e-4 if dtype == torch.float32 else 2e-2


def trainer_arguments(
    settings: Training, env: TrainEnv, dtype: torch.dtype, row_count: int, steps: int | None = None
) -> dict[str, Any]:
    """The arguments that TRL's trainers have in common, under transformers' names.

    Args:
        steps: optimizer steps, whatever number of passes these are; None for the passes of the settings.
    """
    cuda = torch.cuda.is_available()
    return {
        "output_dir": str(env.checkpoint_dir),
        "seed": env.seed,
        "data_seed": env.seed,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.lr_scheduler_type,
        "warmup_steps": math.ceil(settings.warmup_ratio * (steps or total_steps(settings, row_count))),
        "num_train_epochs": settings.num_train_epochs,
        "max_steps": -1 if steps is None else steps,
        "per_device_train_batch_size": settings.per_device_train_batch_size,
        "gradient_accumulation_steps": accumulation_steps(settings, int(os.environ.get("WORLD_SIZE", "1"))),
        "weight_decay": settings.weight_decay,
        "adam_epsilon": settings.adam_epsilon,
        "max_grad_norm": settings.max_grad_norm,
        "gradient_checkpointing": settings.gradient_checkpointing,
        "bf16": dtype == torch.bfloat16,
        "fp16": dtype == torch.float16,
        "use_cpu": local_device().type == "cpu",
        "dataloader_pin_memory": cuda,
        "ddp_find_unused_parameters": False,
        "ddp_timeout": LONGEST_WAIT_SECONDS,
        **sharding_arguments(env.sharding),
        "logging_strategy": "steps",
        "logging_steps": settings.logging_steps,
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_steps": settings.save_steps or SAVE_STEPS,
        "eval_strategy": "no",
        "report_to": list(env.report_to),
        "run_name": env.run_name,
        "disable_tqdm": True,
        "log_level": "error",
        "remove_unused_columns": False,
        "push_to_hub": False,
    }


def total_steps(settings: Training, row_count: int) -> int:
    """Optimizer steps of a whole training."""
    return steps_per_epoch(row_count, settings.global_batch_size) * settings.num_train_epochs


def accumulation_steps(settings: Training, world_size: int) -> int:
    """Micro-batches per optimizer step and process; RecipeError where the global batch does not split evenly."""
    at_once = settings.per_device_train_batch_size * world_size
    if settings.global_batch_size % at_once:
        raise RecipeError(
            f"global_batch_size {settings.global_batch_size} does not split into {world_size} processes x "
            f"per_device_train_batch_size {settings.per_device_train_batch_size}",
            fix=f"make global_batch_size a multiple of {at_once}, or change per_device_train_batch_size or the number "
            "of processes",
        )
    return settings.global_batch_size // at_once


def ready_to_train(model: PreTrainedModel, args: TrainingArguments) -> PreTrainedModel:
    """The model, for a trainer that uses one device."""
    # One process uses one device; where transformers sees several GPUs it would wrap the model in nn.DataParallel.
    if args.device.type == "cuda":
        args._n_gpu = 1
    return model


def train_in_float32(model: PreTrainedModel) -> None:
    """Make all weights that are trained float32, whatever precision peft and TRL gave them."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def must_read_alone(
    model: PreTrainedModel,
    longest: list[int],
    shortest: int,
    dtype: torch.dtype,
    env: TrainEnv,
    *,
    masked: bool = False,
) -> bool:
    """Whether the texts of a batch have to be read one by one, as padding would change what the model says; it is told.

    Args:
        longest: the longest text.
        shortest: tokens of the shortest one.
        dtype: precision of the computation.
        masked: whether padding is masked.
    """
    alone = reads_lengths(model, longest, shortest, dtype=dtype, masked=masked)
    if alone:
        env.on_notice(
            f"{model.config.model_type} reads a text otherwise where padding stands behind it, so the texts of a batch "
            "are read one by one, which takes longer"
        )
    return alone


def fit(trainer: Trainer, env: TrainEnv, detector: NoiseDetector | None = None) -> int:
    """Train, from the newest whole checkpoint if there is one; returns the step of that checkpoint, or 0."""
    trainer.remove_callback(PrinterCallback)
    checkpoints = CheckpointCallback(lambda: {} if detector is None else detector.state_dict(), env.checkpoints_kept)
    trainer.add_callback(checkpoints)
    if trainer.is_world_process_zero():
        trainer.add_callback(_Progress(env.on_progress))
    checkpoint = _checkpoint(trainer, env)
    if checkpoint is not None:
        check_launch(checkpoint)
    if checkpoint is not None and detector is not None:
        detector.load_state_dict(read_state(checkpoint))
    try:
        with _products(trainer, env):
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except Exception:
        if trainer.is_world_process_zero():
            drop_unfinished(env.checkpoint_dir)  # a full disk has room again, to say that it was full
        raise
    return 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])


def _products(trainer: Trainer, env: TrainEnv) -> AbstractContextManager[Any]:
    """Around a training: fast products where weights are whole and in float32; all else is left to torch."""
    in_float32 = not (trainer.args.bf16 or trainer.args.fp16)
    wanted = env.onednn_products and in_float32 and in_use() == "none"
    return fast_products(trainer.args.device) if wanted else nullcontext()


def save_trained(
    trainer: Trainer,
    env: TrainEnv,
    dtype: torch.dtype,
    tokenizer: Any,
    *,
    source: Path | str,
    load_source: Callable[[], PreTrainedModel],
) -> dict[str, float]:
    """Write the trained model, whole and in precision `dtype`, with its tokenizer.

    Args:
        source: place of the model before the training.
        load_source: loads it in a precision that keeps its weights as they are stored. A LoRA adapter is added to
            weights that are loaded afresh, which is right for sharded and for 4-bit models, too; any other update is
            measured against them where it is rounded. With QLoRA the whole stack of adapters is added to the weights
            of `env.base`, which were never in 4 bits, and is measured.

    Returns:
        What the saved model keeps of the update, on the first process; nothing in float32.
    """
    adapter = None if env.model.lora is None else env.output_dir / _ADAPTER
    trained = whole_weights(trainer, trained_only=adapter is not None)
    if not trainer.is_world_process_zero():
        return {}
    _refuse_rounded(trained)
    env.output_dir.mkdir(parents=True, exist_ok=True)
    is_rounded = dtype != torch.float32
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    if adapter is not None:
        model.save_pretrained(str(adapter), state_dict=trained)
        trainer.processing_class.save_pretrained(str(adapter))
        if env.model.in_4bit:
            stack_up(adapter, env.stack)
    with loading_whole(trainer.args):
        start = load_source() if adapter is not None or is_rounded else None
    if adapter is None:
        weights = Weights(trained, start=None if start is None else start.state_dict())
    else:
        assert start is not None
        model, sums = sums_with(start, adapter)
        before = model.state_dict()
        weights = Weights(before, sums, start=before if is_rounded else None)
    kept = save_model(
        model, weights, tokenizer, env.output_dir, source=source, settings=env.model, dtype=dtype, key=env.key
    )
    if adapter is not None:
        keep_or_drop(adapter, env.adapter_dir)
    _say_what_was_lost(kept, dtype, env)
    return kept


def _refuse_rounded(weights: Mapping[str, torch.Tensor]) -> None:
    """Refuse trained weights that are not in float32, but rounded to nearest already.

    Raises:
        StageError: names one.
    """
    for name, tensor in weights.items():
        if tensor.is_floating_point() and tensor.dtype.itemsize < torch.float32.itemsize:
            raise StageError(
                f"the launcher hands out the trained weights of {name} in {tensor.dtype}, rounded to nearest: what was "
                "learned would be lost",
                where="compute.executor",
                fix="use another executor, or set model.dtype to float32",
            )


def _say_what_was_lost(kept: dict[str, float], dtype: torch.dtype, env: TrainEnv) -> None:
    """Tell a person of a saved model that is nearly the one before."""
    share = kept.get("update_kept", 1.0)
    if share < LITTLE:
        remedy = (
            "model.save_rounding to stochastic" if env.model.save_rounding == "nearest" else "model.dtype to float32"
        )
        env.on_notice(
            f"the saved model keeps {share:.1%} of what was learned; the rest was lost when its weights were rounded "
            f"to {dtype_name(dtype)}: set {remedy}"
        )


def finish(
    trainer: Trainer, env: TrainEnv, resumed_from: int, row_count: int, tokens: int, kept: dict[str, float]
) -> TrainResult:
    """Write the training log beside the saved model, and sum up; every process waits for the first one here.

    Args:
        kept: what the saved model keeps of the update; the last line of the log has it, too.
    """
    history = _history(trainer)
    last = history[-1]
    metrics = {"train_loss": _mean_loss(history), "resumed_from_step": float(resumed_from), **kept}
    last.update(kept)
    metrics |= {f"rewards/{name}": last[f"rewards/{name}"] for name in _REWARDS if f"rewards/{name}" in last}
    if trainer.is_world_process_zero():
        write_lines(env.output_dir / TRAINING_LOG, history)
    trainer.accelerator.wait_for_everyone()
    return TrainResult(trainer.state.global_step, row_count, tokens, metrics, history)


def write_lines(path: Path, values: Sequence[Mapping[str, Any]]) -> None:
    """Write one JSON object per line."""
    atomic.write_text(path, "".join(json.dumps(value) + "\n" for value in values))


def _checkpoint(trainer: Trainer, env: TrainEnv) -> Path | None:
    """The newest whole checkpoint, found by the first process for all."""
    found: list[Path | None] = [None]
    if trainer.is_world_process_zero():
        found = [resume_point(env.checkpoint_dir, env.on_notice)]
    broadcast_object_list(found)
    return found[0]


def _history(trainer: Trainer) -> list[dict[str, float]]:
    """The log lines, in a form that does not depend on interruptions and micro-batches."""
    return [
        {"step": entry["step"], **dict(sorted(entry.items())), "epoch": entry["step"] / trainer.steps_in_epoch}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]


def _mean_loss(history: list[dict[str, float]]) -> float:
    """Mean over all steps; a log line holds the mean since the line before."""
    total, before = 0.0, 0.0
    for entry in history:
        total += entry["loss"] * (entry["step"] - before)
        before = entry["step"]
    return total / before


class _Progress(TrainerCallback):  # type: ignore[misc]
    """Reports steps and log lines."""

    def __init__(self, on_progress: OnProgress) -> None:
        self._on_progress = on_progress

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._on_progress(state.global_step, state.max_steps, {})

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs and "loss" in logs:
            self._on_progress(state.global_step, state.max_steps, dict(logs))
