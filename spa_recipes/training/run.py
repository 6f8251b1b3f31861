"""The trainings of a policy that stages call: settings in, a model folder and figures out."""

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainingArguments
from trl import DPOConfig, SFTConfig

from spa_recipes.algo.noise import error_per_root_token
from spa_recipes.errors import DataError
from spa_recipes.models.adapters import lay_under, lora_config, refuse_on_output_layer
from spa_recipes.models.causal import check_causal
from spa_recipes.models.dtype import dtype_name
from spa_recipes.models.loading import load_causal_lm, stored_dtype
from spa_recipes.models.weight_files import exact_dtype
from spa_recipes.recipe.schema import Model, PreferenceTraining, SupervisedTraining
from spa_recipes.training import common
from spa_recipes.training.along_update import AlongUpdate
from spa_recipes.training.common import Rows
from spa_recipes.training.dropout import check_no_dropout, switch_off_dropout
from spa_recipes.training.env import METHODS_LOSS, PairLoss, Refinement, Start, TrainEnv, TrainResult
from spa_recipes.training.order import column_lengths
from spa_recipes.training.pair_rows import REFERENCE_COLUMNS, PairCollator, longest_text, pair_lengths, pair_tokens
from spa_recipes.training.preference import NoiseDetector, SpaTrainer
from spa_recipes.training.response_logps import check_response_logps
from spa_recipes.training.sft import SftCollator, SpaSftTrainer
from spa_recipes.training.sharding import is_loaded_in_shares, is_sharded, loading_whole, shards_weights

_EXAMPLE = 64  # tokens on which log-probs are compared with the model's own
_MEASURED, _LONG_EXAMPLE = 4, 256  # rows on which rounding is measured, and tokens of each

PAIRS_TRACE = "pairs_trace.jsonl"

__all__ = [
    "PAIRS_TRACE",
    "PairLoss",
    "Refinement",
    "Start",
    "TrainEnv",
    "TrainResult",
    "train_preference",
    "train_sft",
]


def train_sft(model_path: Path | str, rows: Rows, settings: SupervisedTraining, env: TrainEnv) -> TrainResult:
    """Fine-tune a model on rows `{"input_ids", "response_mask"}`; the loss is taken only where the mask is 1.

    Saves the model, its tokenizer and `training_log.jsonl` in `env.output_dir`. Continues from the newest whole
    checkpoint in `env.checkpoint_dir`, if there is one. Every process of a distributed run calls this; the first one
    writes.

    Raises:
        DataError: there are no rows, or none has a response token; the model cannot be loaded.
        RecipeError: this machine or number of processes cannot follow the settings.
        StageError: the loss or the gradient became NaN or infinite.
    """
    table = common.checked_rows(rows, ("input_ids", "response_mask"))
    dtype = common.training_dtype(env.model)
    args = SFTConfig(**common.trainer_arguments(settings, env, dtype, len(table)), max_length=None)
    policy = _policy(model_path, env, dtype, args, dropout=settings.dropout)
    trainer = SpaSftTrainer(
        policy,
        args,
        table,
        global_batch_size=settings.global_batch_size,
        processing_class=copy.deepcopy(env.tokenizer),
        data_collator=SftCollator(_pad_token_id(env, policy)),
        **_adapter(env),
    )
    lengths = column_lengths(table, "input_ids")
    tokens = sum(lengths) * settings.num_train_epochs
    longest = table[lengths.index(max(lengths))]["input_ids"]
    return _train(
        trainer,
        model_path,
        env,
        dtype,
        len(table),
        tokens,
        longest,
        shortest=min(lengths),
        detector=None,
        dropout=settings.dropout,
    )


def train_preference(
    policy_path: Path | str,
    rows: Rows,
    settings: PreferenceTraining,
    env: TrainEnv,
    *,
    reference_path: Path | str | None,
    refinement: Refinement | None,
    loss: PairLoss = METHODS_LOSS,
    replayed: int = 0,
    start: Start | None = None,
    steps: int | None = None,
) -> TrainResult:
    """DPO (`refinement` None) or self-refinement on rows `{"prompt_ids", "chosen_ids", "rejected_ids"}`.

    Writes the same as `train_sft`, and with `refinement` also `pairs_trace.jsonl`: one line per pair seen.

    Args:
        reference_path: the training reference. It is not needed, and not loaded, where the rows hold the reference's
            log-probs in the columns `ref_chosen_logps` and `ref_rejected_logps` and lambda is 0. lambda > 0 needs a
            live model: this one or, with LoRA and None or the policy's own path, the policy with its adapter switched
            off.
            In half precision the detector loads it, unless it is the policy without its adapter; it has to be what
            the policy starts from, and is taken for the policy itself where it is None.
        loss: what is minimised for a pair; by default the method's loss.
        replayed: the last so many rows are labelled seed pairs; every batch gets its share of them.
        start: check that the policy starts as its reference; margins against a mixed reference are compared with
            `loss.first_margins`. None: the reference may be any model.
        steps: optimizer steps, in as many passes as they take; None for the passes of the settings.

    Raises: as `train_sft`.
    """
    table = common.checked_rows(rows, ("prompt_ids", "chosen_ids", "rejected_ids"))
    has_columns = all(name in table.column_names for name in REFERENCE_COLUMNS)
    needs_live = refinement is not None and refinement.lam > 0
    own_base = env.model.lora is not None and (reference_path is None or str(reference_path) == str(policy_path))
    if (needs_live or not has_columns) and reference_path is None and not own_base:
        raise DataError(
            "the reference is missing: de-coupled detection (lambda > 0) needs a live reference model"
            if has_columns
            else f"the reference is missing: no reference model and no columns {' and '.join(REFERENCE_COLUMNS)}",
            fix="give reference_path",
        )
    precomputed = has_columns and not needs_live
    dtype = common.training_dtype(env.model)
    args = DPOConfig(
        **common.trainer_arguments(settings, env, dtype, len(table), steps),
        beta=settings.beta,
        max_length=None,
        precompute_ref_log_probs=precomputed,
        disable_dropout=False,
    )
    detector = None
    if refinement is not None:
        warmup = math.ceil(refinement.warmup_ratio * common.total_steps(settings, len(table)))
        detector = NoiseDetector(refinement, warmup_steps=warmup)
    reference = None
    if not precomputed and not own_base:
        assert reference_path is not None
        reference = load_causal_lm(reference_path, env.model, dtype)
    policy = _policy(policy_path, env, dtype, args)
    trainer = SpaTrainer(
        policy,
        args,
        table,
        global_batch_size=settings.global_batch_size,
        detector=detector,
        loss=loss,
        replayed=replayed,
        start=start,
        tolerance=common.tolerance(dtype),
        ref_model=reference,
        processing_class=copy.deepcopy(env.tokenizer),
        data_collator=PairCollator(_pad_token_id(env, policy)),
        **_adapter(env),
    )
    if start is not None and dtype != torch.float32 and env.model.lora is None and not is_loaded_in_shares():
        trainer.logp_noise = _logp_noise(trainer.model, table[:_MEASURED], dtype)
    if refinement is not None and dtype != torch.float32 and refinement.detector != "judge":
        its_start = reference_path or policy_path
        trainer.along_update = _along_update(its_start, reference, refinement.lam, loss, env, dtype, args)
    passes = settings.num_train_epochs if steps is None else steps / trainer.steps_in_epoch
    tokens = round(pair_tokens(table) * passes)
    longest, shortest = longest_text(table), min(pair_lengths(table, min))
    result = _train(trainer, policy_path, env, dtype, len(table), tokens, longest, shortest=shortest, detector=detector)
    return replace(result, detects_along_update=trainer.along_update is not None and trainer.along_update.works)


def _logp_noise(model: PreTrainedModel, rows: Mapping[str, list[list[int]]], dtype: torch.dtype) -> float:
    """Standard error of a log-prob when all is computed in `dtype`, per root of a token: see `algo.noise`.

    It is measured on the beginnings of some rows, against the same weights in float32.
    """
    half = {name: weight.detach().to(dtype) for name, weight in model.named_parameters()}
    longest = _EXAMPLE if is_sharded() else _LONG_EXAMPLE  # what will be shared out is on the CPU now
    errors, tokens = [], []
    with torch.no_grad():
        for prompt, chosen in zip(rows["prompt_ids"], rows["chosen_ids"], strict=True):
            ids_1T = torch.tensor([(prompt + chosen)[:longest]], device=model.device)
            text = {"input_ids": ids_1T, "response_labels": ids_1T}
            rounded_1 = torch.func.functional_call(model, half, (), text)
            errors.append((rounded_1 - model(**text)).item())
            tokens.append(ids_1T.shape[1] - 1)
    return error_per_root_token(errors, tokens)


def _along_update(
    path: Path | str,
    reference: PreTrainedModel | None,
    lam: float,
    loss: PairLoss,
    env: TrainEnv,
    dtype: torch.dtype,
    args: TrainingArguments,
) -> AlongUpdate | None:
    """Where the detector's log-ratios come from in half precision; None, which is said, where that cannot be.

    Args:
        path: of the reference, which the policy starts from.
        reference: it, where the training has it in memory.
    """

    def say(reason: str) -> None:
        env.on_notice(
            f"p~ of the noise detector is a difference of log-probs in {dtype_name(dtype)}, not a derivative, since "
            f"{reason}: rounding decides in part which pairs are flagged; set noise.detector to judge, or model.dtype "
            "to float32"
        )

    if loss.first_margins and loss.divergence != "reverse_kl":
        say(f"the start's distance to a mixed reference is known for pairs, and {loss.divergence} reads responses")
        return None
    if env.model.lora is not None:
        if env.model.in_4bit:
            say("products with weights in 4 bits have no derivative in forward mode")
            return None
        if not shards_weights():
            return AlongUpdate(None, None, lam, say)
    with loading_whole(args):
        if reference is None or shards_weights():
            reference = load_causal_lm(path, env.model, dtype)
            reference.to(args.device)
        stored = stored_dtype(env.model.model_copy(update={"model_name_or_path": str(path)}))
        is_exact = env.model.lora is not None or (stored is not None and torch.promote_types(stored, dtype) == dtype)
        exact = None if is_exact else load_causal_lm(path, env.model, torch.float32)
    return AlongUpdate(reference, exact, lam, say)


def _train(
    trainer: SpaTrainer | SpaSftTrainer,
    policy_path: Path | str,
    env: TrainEnv,
    dtype: torch.dtype,
    row_count: int,
    tokens: int,
    longest: list[int],
    *,
    shortest: int,
    detector: NoiseDetector | None,
    dropout: bool = False,
) -> TrainResult:
    """Train, from a checkpoint if there is one, save, and sum up.

    Args:
        longest: the longest text.
        shortest: tokens of the shortest one.
    """
    if env.model.lora is not None:
        refuse_on_output_layer(trainer.model)
    common.train_in_float32(trainer.model)
    if not is_loaded_in_shares():
        # A model that will be shared out is whole on the CPU, which would take minutes for a long text.
        longest = longest[:_EXAMPLE] if is_sharded() else longest
        with trainer.accelerator.autocast():
            check_causal(trainer.model, max(2, len(longest)))
            check_response_logps(trainer.model, longest[:_EXAMPLE], common.tolerance(dtype))
            if not dropout:
                check_no_dropout(trainer.model, longest[:_EXAMPLE], common.tolerance(dtype))
            trainer.reads_alone = common.must_read_alone(trainer.model, longest, shortest, dtype, env)
    resumed_from = common.fit(trainer, env, detector)
    kept = common.save_trained(
        trainer,
        env,
        dtype,
        env.tokenizer,
        source=policy_path,
        load_source=lambda: _load_start(policy_path, env),
    )
    if detector is not None and trainer.is_world_process_zero():
        common.write_lines(env.output_dir / PAIRS_TRACE, detector.trace)
    result = common.finish(trainer, env, resumed_from, row_count, tokens, kept)
    if detector is not None:
        result.metrics["spa/flagged"] = detector.flagged_share()
    return result


def _policy(
    path: Path | str, env: TrainEnv, dtype: torch.dtype, args: TrainingArguments, *, dropout: bool = False
) -> PreTrainedModel:
    """The model to train: float32 master weights; with LoRA the frozen weights stay in the compute precision.

    With QLoRA they are those of `env.base` in 4 bits, with the adapters that were trained before.
    """
    lora = env.model.lora
    if lora is None:
        model = load_causal_lm(path, env.model, torch.float32)
    else:
        model = load_causal_lm(*_start(path, env), dtype, in_4bit=lora.load_in_4bit)
    if env.stack is not None:
        lay_under(model, env.stack, dtype)
    if not dropout:
        switch_off_dropout(model)
    return common.ready_to_train(model, args)


def _start(policy_path: Path | str, env: TrainEnv) -> tuple[Path | str, Model]:
    """The weights that the training adds to, and how they are loaded."""
    return (policy_path, env.model) if env.base is None else (env.base.model_name_or_path, env.base)


def _load_start(policy_path: Path | str, env: TrainEnv) -> PreTrainedModel:
    """Those weights as they are stored."""
    path, settings = _start(policy_path, env)
    return load_causal_lm(path, settings, exact_dtype(path))


def _adapter(env: TrainEnv) -> dict[str, Any]:
    return {} if env.model.lora is None else {"peft_config": lora_config(env.model.lora)}


def _pad_token_id(env: TrainEnv, policy: PreTrainedModel) -> int:
    """The token that stands on the right of shorter texts, where nothing looks; one that the model has."""
    pad = env.tokenizer.pad_token_id if env.tokenizer.pad_token_id is not None else env.tokenizer.eos_token_id
    if pad is None:
        raise DataError("the tokenizer has neither a pad nor an end token", fix="set one in tokenizer_config.json")
    return int(pad) if pad < policy.config.get_text_config().vocab_size else 0
