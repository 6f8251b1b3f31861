"""The trainings that stages call: settings in, a model folder and figures out."""

import copy
import gc
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import torch
from accelerate.utils import broadcast_object_list
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import DPOConfig, SFTConfig

from spa_recipes.errors import DataError, RecipeError, TryAgainError
from spa_recipes.recipe.schema import PreferenceTraining, Training
from spa_recipes.state import atomic
from spa_recipes.training import models
from spa_recipes.training.checkpoints import CheckpointCallback, drop_unfinished, read_state, resume_point
from spa_recipes.training.env import OnProgress, Refinement, TrainEnv, TrainResult
from spa_recipes.training.order import as_dataset, column_lengths, steps_per_epoch
from spa_recipes.training.preference import REFERENCE_COLUMNS, NoiseDetector, PairCollator, SpaTrainer
from spa_recipes.training.response_logps import check_response_logps, is_sharded
from spa_recipes.training.sft import SftCollator, SpaSftTrainer

_EXAMPLE = 64  # tokens on which log-probs are compared with the model's own
_TOLERANCE, _HALF_TOLERANCE = 1e-4, 2e-2

TRAINING_LOG = "training_log.jsonl"
PAIRS_TRACE = "pairs_trace.jsonl"

__all__ = [
    "PAIRS_TRACE",
    "TRAINING_LOG",
    "Refinement",
    "Rows",
    "TrainEnv",
    "TrainResult",
    "accumulation_steps",
    "checked_rows",
    "common_arguments",
    "finish",
    "fit",
    "memory_errors",
    "train_preference",
    "train_sft",
]

Rows: TypeAlias = datasets.Dataset | Sequence[Mapping[str, Any]]


def train_sft(model_path: Path | str, rows: Rows, settings: Training, env: TrainEnv) -> TrainResult:
    """Fine-tune a model on rows `{"input_ids", "response_mask"}`; loss only where the mask is 1.

    Saves the model, its tokenizer and `training_log.jsonl` in `env.output_dir`, and goes on from a checkpoint in
    `env.checkpoint_dir` if a whole one is there. Every process of a distributed run calls this; the first one writes.

    Raises:
        DataError: no rows, or rows without a response token; the model cannot be loaded.
        RecipeError: settings that this machine or number of processes cannot follow.
        StageError: loss or gradient became NaN or infinite.
        TryAgainError: out of memory.
    """
    table = checked_rows(rows, ("input_ids", "response_mask"))
    with memory_errors():
        dtype = models.resolve_dtype(env.model)
        args = SFTConfig(**common_arguments(settings, env, dtype, len(table)), max_length=None)
        trainer = SpaSftTrainer(
            _policy(model_path, env, dtype, args),
            args,
            table,
            global_batch_size=settings.global_batch_size,
            processing_class=copy.deepcopy(env.tokenizer),
            data_collator=SftCollator(_pad_token_id(env)),
            **_adapter(env),
        )
        tokens = sum(column_lengths(table, "input_ids")) * settings.num_train_epochs
        return _train(
            trainer, model_path, env, dtype, len(table), tokens, table[0]["input_ids"][:_EXAMPLE], detector=None
        )


def train_preference(
    policy_path: Path | str,
    rows: Rows,
    settings: PreferenceTraining,
    env: TrainEnv,
    *,
    reference_path: Path | str | None,
    refinement: Refinement | None,
    replayed: int = 0,
) -> TrainResult:
    """DPO (`refinement` None) or self-refinement on rows `{"prompt_ids", "chosen_ids", "rejected_ids"}`.

    The training reference is given by the columns `ref_chosen_logps` and `ref_rejected_logps`, and then no reference
    model is loaded; or by `reference_path`. lambda > 0 needs a live model: `reference_path`, or with LoRA (and no
    `reference_path`, or the policy's own) the policy with its adapter switched off. The last `replayed` rows are
    labelled seed pairs, which every batch gets its share of.

    Writes the same as `train_sft`, and with `refinement` also `pairs_trace.jsonl`: one line per pair seen.

    Raises: as `train_sft`.
    """
    table = checked_rows(rows, ("prompt_ids", "chosen_ids", "rejected_ids"))
    has_columns = all(name in table.column_names for name in REFERENCE_COLUMNS)
    needs_live = refinement is not None and refinement.lam > 0
    own_base = env.model.lora is not None and reference_path in (None, policy_path)
    if (needs_live or not has_columns) and reference_path is None and not own_base:
        raise DataError(
            "the reference is missing: de-coupled detection (lambda > 0) needs a live reference model"
            if has_columns
            else f"the reference is missing: no reference model and no columns {' and '.join(REFERENCE_COLUMNS)}",
            fix="give reference_path",
        )
    precomputed = has_columns and not needs_live
    with memory_errors():
        dtype = models.resolve_dtype(env.model)
        arguments = common_arguments(settings, env, dtype, len(table))
        args = DPOConfig(
            **arguments,
            beta=settings.beta,
            max_length=None,
            precompute_ref_log_probs=precomputed,
            disable_dropout=False,
        )
        detector = None
        if refinement is not None:
            steps = _total_steps(settings, len(table))
            detector = NoiseDetector(refinement, warmup_steps=math.ceil(refinement.warmup_ratio * steps))
        reference = None
        if not precomputed and not own_base:
            assert reference_path is not None
            reference = models.load_model(reference_path, env.model, dtype)
        trainer = SpaTrainer(
            _policy(policy_path, env, dtype, args),
            args,
            table,
            global_batch_size=settings.global_batch_size,
            detector=detector,
            replayed=replayed,
            ref_model=reference,
            processing_class=copy.deepcopy(env.tokenizer),
            data_collator=PairCollator(_pad_token_id(env)),
            **_adapter(env),
        )
        lengths = {name: sum(column_lengths(table, name)) for name in ("prompt_ids", "chosen_ids", "rejected_ids")}
        tokens = (
            2 * lengths["prompt_ids"] + lengths["chosen_ids"] + lengths["rejected_ids"]
        ) * settings.num_train_epochs
        example = (table[0]["prompt_ids"] + table[0]["chosen_ids"])[:_EXAMPLE]
        return _train(trainer, policy_path, env, dtype, len(table), tokens, example, detector=detector)


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


def _train(
    trainer: Trainer,
    policy_path: Path | str,
    env: TrainEnv,
    dtype: torch.dtype,
    row_count: int,
    tokens: int,
    example: list[int],
    *,
    detector: NoiseDetector | None,
) -> TrainResult:
    """Train, from a checkpoint if there is one, save, and sum up; `example` is a text of some tokens."""
    for parameter in trainer.model.parameters():
        # TRL rounds the adapters of a 4-bit model to bfloat16.
        if parameter.requires_grad and getattr(trainer.model, "is_loaded_in_4bit", False):
            parameter.data = parameter.data.float()
    if not is_sharded():
        with trainer.accelerator.autocast():
            check_response_logps(trainer.model, example, _TOLERANCE if dtype == torch.float32 else _HALF_TOLERANCE)
    resumed_from = fit(trainer, env, detector)
    _save(trainer, policy_path, env, dtype)
    if detector is not None and trainer.is_world_process_zero():
        _write_lines(env.output_dir / PAIRS_TRACE, [record._asdict() for record in detector.trace])
    result = finish(trainer, env, resumed_from, row_count, tokens)
    if detector is not None:
        result.metrics["spa/flagged"] = detector.flagged_share()
    return result


def fit(trainer: Trainer, env: TrainEnv, detector: NoiseDetector | None = None) -> int:
    """Train, from the newest whole checkpoint if there is one; returns the step of that checkpoint, or 0."""
    trainer.remove_callback(PrinterCallback)
    checkpoints = CheckpointCallback(lambda: {} if detector is None else detector.state_dict(), env.checkpoints_kept)
    trainer.add_callback(checkpoints)
    if trainer.is_world_process_zero():
        trainer.add_callback(_Progress(env.on_progress))
    checkpoint = _checkpoint(trainer, env)
    if checkpoint is not None and detector is not None:
        detector.load_state_dict(read_state(checkpoint))
    try:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except Exception:
        if trainer.is_world_process_zero():
            drop_unfinished(env.checkpoint_dir)  # a full disk has room again, to say that it was full
        raise
    return 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])


def finish(trainer: Trainer, env: TrainEnv, resumed_from: int, row_count: int, tokens: int) -> TrainResult:
    """Write the training log beside the saved model, and sum up."""
    history = _history(trainer)
    last = history[-1]
    metrics = {"train_loss": _mean_loss(history), "resumed_from_step": float(resumed_from)}
    metrics |= {name: last[name] for name in ("rewards/accuracies", "rewards/margins") if name in last}
    if trainer.is_world_process_zero():
        _write_lines(env.output_dir / TRAINING_LOG, history)
    trainer.accelerator.wait_for_everyone()
    return TrainResult(trainer.state.global_step, row_count, tokens, metrics, history)


def common_arguments(settings: Training, env: TrainEnv, dtype: torch.dtype, row_count: int) -> dict[str, Any]:
    """What the trainers of TRL have in common, in transformers' names."""
    cuda = torch.cuda.is_available()
    return {
        "output_dir": str(env.checkpoint_dir),
        "seed": env.seed,
        "data_seed": env.seed,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.lr_scheduler_type,
        "warmup_steps": math.ceil(settings.warmup_ratio * _total_steps(settings, row_count)),
        "num_train_epochs": settings.num_train_epochs,
        "per_device_train_batch_size": settings.per_device_train_batch_size,
        "gradient_accumulation_steps": accumulation_steps(settings, int(os.environ.get("WORLD_SIZE", "1"))),
        "weight_decay": settings.weight_decay,
        "adam_epsilon": settings.adam_epsilon,
        "max_grad_norm": settings.max_grad_norm,
        "gradient_checkpointing": settings.gradient_checkpointing,
        "bf16": dtype == torch.bfloat16,
        "fp16": dtype == torch.float16,
        "use_cpu": not cuda,
        "dataloader_pin_memory": cuda,
        "ddp_find_unused_parameters": False,
        "logging_strategy": "steps",
        "logging_steps": settings.logging_steps,
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_steps": settings.save_steps,
        "eval_strategy": "no",
        "report_to": list(env.report_to),
        "run_name": env.run_name,
        "disable_tqdm": True,
        "log_level": "error",
        "remove_unused_columns": False,
        "push_to_hub": False,
    }


def _policy(path: Path | str, env: TrainEnv, dtype: torch.dtype, args: TrainingArguments) -> Any:
    """The model to train: float32 master weights; with LoRA the frozen weights stay in the compute precision."""
    from trl.trainer.utils import disable_dropout_in_model

    # One process uses one device; with several GPUs in sight transformers would fall back to nn.DataParallel.
    if args.device.type == "cuda":
        args._n_gpu = 1
    lora = env.model.lora
    model = models.load_model(
        path, env.model, torch.float32 if lora is None else dtype, in_4bit=lora is not None and lora.load_in_4bit
    )
    # Log-probs with dropout would be those of another model; a dropout of the adapters comes later and stays.
    disable_dropout_in_model(model)
    return model


def _adapter(env: TrainEnv) -> dict[str, Any]:
    return {} if env.model.lora is None else {"peft_config": models.lora_config(env.model.lora)}


def _pad_token_id(env: TrainEnv) -> int:
    pad = env.tokenizer.pad_token_id if env.tokenizer.pad_token_id is not None else env.tokenizer.eos_token_id
    if pad is None:
        raise DataError("the tokenizer has neither a pad nor an end token", fix="set one in tokenizer_config.json")
    return int(pad)


def checked_rows(rows: Rows, columns: tuple[str, ...]) -> datasets.Dataset:
    """The rows as a Dataset with the needed columns."""
    table = as_dataset(rows)
    missing = [name for name in columns if name not in table.column_names]
    if not len(table) or missing:
        raise DataError(f"the rows lack {', '.join(missing)}" if missing and len(table) else "no rows to train on")
    return table


def _total_steps(settings: Training, row_count: int) -> int:
    return steps_per_epoch(row_count, settings.global_batch_size) * settings.num_train_epochs


def _checkpoint(trainer: Trainer, env: TrainEnv) -> Path | None:
    """The newest whole checkpoint, found by the first process for all."""
    found: list[Path | None] = [None]
    if trainer.is_world_process_zero():
        found = [resume_point(env.checkpoint_dir, env.on_notice)]
    broadcast_object_list(found)
    return found[0]


def _save(trainer: Trainer, policy_path: Path | str, env: TrainEnv, dtype: torch.dtype) -> None:
    """Write the trained model, whole and in the resolved precision."""
    first = trainer.is_world_process_zero()
    if first:
        env.output_dir.mkdir(parents=True, exist_ok=True)
    if env.model.lora is not None:
        # Merged into weights that are loaded afresh: right for sharded and for 4-bit models too.
        trainer.save_model(str(models.adapter_folder(env.output_dir)))
        if first:
            models.save_merged(models.adapter_folder(env.output_dir), policy_path, env.model, env.output_dir, dtype)
            if env.adapter_dir is None:
                models.drop_adapter(env.output_dir)
            else:
                models.keep_adapter(env.output_dir, env.adapter_dir)
    else:
        state_dict = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        if first:
            model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
            models.save_full(model, state_dict, policy_path, env.model, env.output_dir, dtype)
    if first:
        env.tokenizer.save_pretrained(str(env.output_dir))
    trainer.accelerator.wait_for_everyone()


def _history(trainer: Trainer) -> list[dict[str, float]]:
    """The log lines, in a form that does not depend on interruptions and micro-batches."""
    per_epoch = trainer.state.max_steps / trainer.args.num_train_epochs
    return [
        {"step": entry["step"], **dict(sorted(entry.items())), "epoch": entry["step"] / per_epoch}
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


def _write_lines(path: Path, values: Sequence[Mapping[str, Any]]) -> None:
    atomic.write_text(path, "".join(json.dumps(value) + "\n" for value in values))


@contextmanager
def memory_errors() -> Iterator[None]:
    """Out of memory is something the user can cure."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        known = ("out of memory", "can't allocate memory", "not enough memory")  # CUDA, CPU
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in known):
            raise
        gc.collect()
        raise TryAgainError(
            "out of memory while training",
            fix="lower per_device_train_batch_size, set gradient_checkpointing: true, or set model.lora",
        ) from error


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
