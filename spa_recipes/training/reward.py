"""A reward model on TRL's RewardTrainer: a policy's body with a new output of one number, trained on labelled pairs."""

import copy
import math
from pathlib import Path
from typing import Any

import datasets
import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel, Trainer, TrainingArguments
from transformers.utils import logging as transformers_logging
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import suppress_seqcls_warning
from trl.trainer.utils import disable_dropout_in_model

from spa_recipes.algo.reward import READS_TURNS, pairwise_loss, use_score_head
from spa_recipes.errors import DataError, RecipeError
from spa_recipes.recipe.schema import Training
from spa_recipes.training import models
from spa_recipes.training.env import TrainEnv, TrainResult
from spa_recipes.training.order import (
    PADDING_ROW,
    column_lengths,
    not_finite,
    rows_in_step,
)
from spa_recipes.training.preference import PairCollator, pair_lengths
from spa_recipes.training.run import Rows, checked_rows, common_arguments, finish, fit, memory_errors
from spa_recipes.training.token_rows import TrainsTokenRows


def train_reward_model(
    policy_path: Path | str, rows: Rows, settings: Training, env: TrainEnv, *, end_ids: list[int]
) -> TrainResult:
    """Train a reward model on rows `{"prompt_ids", "chosen_ids", "rejected_ids"}`: the mean of -log sigmoid(r_w - r_l).

    The model is the policy's body and a new `score` layer, drawn with `env.seed`. With LoRA, adapters and `score` are
    trained, and merged at the end. Saves the model, its tokenizer and `training_log.jsonl` in `env.output_dir`, and
    goes on from a checkpoint in `env.checkpoint_dir` if a whole one is there. Every process of a distributed run calls
    this; the first one writes.

    Args:
        end_ids: tokens at which responses end. The model reads its reward at the last token that is not padding, so it
            pads with another one.

    Raises:
        DataError: no rows; the model cannot be loaded or has no such form; no token to pad with.
        RecipeError: settings that this machine or number of processes cannot follow; 4 bits.
        StageError: loss or gradient became NaN or infinite.
        TryAgainError: out of memory.
    """
    table = checked_rows(rows, ("prompt_ids", "chosen_ids", "rejected_ids"))
    lora = env.model.lora
    if lora is not None and lora.load_in_4bit:
        raise RecipeError(
            "a reward model is not trained in 4 bits",
            where="model.lora.load_in_4bit",
            fix="set it to false, or give a finished reward model by judge.model_name_or_path",
        )
    with memory_errors():
        dtype = models.resolve_dtype(env.model)
        args = RewardConfig(
            **common_arguments(settings, env, dtype, len(table)), max_length=None, disable_dropout=False
        )
        model = _model(policy_path, env, torch.float32 if lora is None else dtype, args)
        tokenizer = _padding_tokenizer(env.tokenizer, end_ids, model.get_input_embeddings().num_embeddings)
        trainer = SpaRewardTrainer(
            model,
            args,
            table,
            global_batch_size=settings.global_batch_size,
            processing_class=tokenizer,
            data_collator=PairCollator(tokenizer.pad_token_id),
            **({} if lora is None else {"peft_config": _lora_config(env)}),
        )
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:  # with LoRA also `score`, which was loaded in the compute precision
                parameter.data = parameter.data.float()
        lengths = {name: sum(column_lengths(table, name)) for name in ("prompt_ids", "chosen_ids", "rejected_ids")}
        tokens = 2 * lengths["prompt_ids"] + lengths["chosen_ids"] + lengths["rejected_ids"]
        resumed_from = fit(trainer, env)
        _save(trainer, policy_path, env, dtype, tokenizer)
        return finish(trainer, env, resumed_from, len(table), tokens * settings.num_train_epochs)


class SpaRewardTrainer(TrainsTokenRows, RewardTrainer):  # type: ignore[misc]
    """Bradley-Terry loss on tokenised pairs: the mean over all pairs of an optimizer step, whichever process has them.

    TRL's own loss is a mean of means, which is another number where the last batch of an epoch is smaller; with equal
    batches it is the same, as a test shows.

    Args:
        rows: columns prompt_ids, chosen_ids, rejected_ids.
        global_batch_size: pairs per optimizer step over all processes.
    """

    # The loss is divided by the pairs of the whole step here, not by transformers per micro-batch.
    loss_is_scaled_for_ga = True

    def __init__(
        self, model: Any, args: RewardConfig, rows: datasets.Dataset, *, global_batch_size: int, **kwargs: Any
    ) -> None:
        self._global_batch_size = global_batch_size
        self._lengths = pair_lengths(rows)
        self._seen: list[torch.Tensor] = []
        super().__init__(model=model, args=args, train_dataset=rows, **kwargs)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """The micro-batch's share of the mean over the pairs of the step; chosen sequences come first."""
        output = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        chosen_B, rejected_B = output.logits.squeeze(-1).float().chunk(2)
        loss_B = pairwise_loss(chosen_B, rejected_B)
        self._seen.append(torch.stack([inputs["row"], loss_B, chosen_B, rejected_B]).detach().double())
        counts_B = (inputs["row"] != PADDING_ROW).to(loss_B.dtype)
        pairs = rows_in_step(self.state.global_step, len(self._lengths), self._global_batch_size)
        # Gradients are averaged over the processes: each contributes its sum, times their number.
        loss: torch.Tensor = (loss_B * counts_B).sum() * (self.accelerator.num_processes / pairs)
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Before the optimizer step: stop where loss or gradient is not finite, and note the figures of the pairs."""
        norm = super()._get_grad_norm(model, grad_norm)
        seen, self._seen = torch.cat(self._seen, dim=1), []
        table = self.accelerator.gather(seen.T.contiguous()).cpu()
        table = table[table[:, 0] != PADDING_ROW]
        row_B, loss_B, chosen_B, rejected_B = table[table[:, 0].argsort()].T
        finite = bool(loss_B.isfinite().all())
        # With float16 an infinite gradient is normal: the scaler skips the step.
        if not finite or (norm is not None and not math.isfinite(norm) and not self.args.fp16):
            raise not_finite("gradient" if finite else "loss", self.state.global_step + 1, row_B.long().tolist())
        figures = {
            "rewards/chosen": chosen_B,
            "rewards/rejected": rejected_B,
            "rewards/margins": chosen_B - rejected_B,
            "rewards/accuracies": (chosen_B > rejected_B).double(),
        }
        for name, values in figures.items():
            self._metrics["train"][name].append(values.mean().item())
        return norm


def _model(path: Path | str, env: TrainEnv, dtype: torch.dtype, args: TrainingArguments) -> PreTrainedModel:
    """The body of the policy with a new, seeded `score`, without dropout."""
    # One process uses one device; with several GPUs in sight transformers would fall back to nn.DataParallel.
    if args.device.type == "cuda":
        args._n_gpu = 1
    model = _load(path, env, dtype)
    disable_dropout_in_model(model)
    return model


def _load(path: Path | str, env: TrainEnv, dtype: torch.dtype) -> PreTrainedModel:
    """A sequence-classification model with one output, on the CPU."""
    transformers_logging.disable_progress_bar()
    settings = env.model
    try:
        with suppress_seqcls_warning(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(env.seed)
            model = AutoModelForSequenceClassification.from_pretrained(
                str(path),
                num_labels=1,
                use_safetensors=True,
                revision=settings.revision if str(path) == settings.model_name_or_path else None,
                dtype=dtype,
                attn_implementation=settings.attn_implementation,
                trust_remote_code=settings.trust_remote_code,
            )
    except (OSError, SafetensorError) as error:
        raise DataError(f"no model can be loaded from {path}: {error}", fix="check model_name_or_path") from error
    except ValueError as error:  # transformers knows the architecture, but not as a classifier
        raise DataError(
            f"no reward model can be made from {path}: {error}",
            fix="give a finished one by judge.model_name_or_path",
        ) from error
    use_score_head(model)
    return model


def _padding_tokenizer(tokenizer: Any, end_ids: list[int], vocabulary: int) -> Any:
    """A copy of the tokenizer that pads with a token which ends no response."""
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    unknown = {tokenizer.unk_token_id} - {tokenizer.pad_token_id}
    allowed = (special | set(tokenizer.all_special_ids)) - set(end_ids) - unknown
    usable = sorted(index for index in allowed if index < vocabulary)
    if not usable:
        raise DataError(
            "the tokenizer has no special token to pad with: all of them end a response, and a reward is read at the "
            "last token that is not padding",
            fix="give the tokenizer a pad token of its own, or a finished reward model by judge.model_name_or_path",
        )
    padding = copy.deepcopy(tokenizer)
    if padding.pad_token_id not in usable:
        padding.pad_token = padding.convert_ids_to_tokens(usable[0])
    return padding


def _lora_config(env: TrainEnv) -> Any:
    """The recipe's adapters, and `score` as a whole."""
    assert env.model.lora is not None
    config = models.lora_config(env.model.lora)
    config.task_type, config.modules_to_save = "SEQ_CLS", ["score"]
    return config


def _save(trainer: Trainer, policy_path: Path | str, env: TrainEnv, dtype: torch.dtype, tokenizer: Any) -> None:
    """Write the trained model, whole and in the resolved precision, as a model that pools as it was trained."""
    first = trainer.is_world_process_zero()
    folder = env.output_dir
    if first:
        folder.mkdir(parents=True, exist_ok=True)
    if env.model.lora is not None:
        trainer.save_model(str(models.adapter_folder(folder)))
        if first:
            merged = _merged(policy_path, env)
            models.save_full(merged, merged.state_dict(), policy_path, env.model, folder, dtype)
            models.drop_adapter(folder)
    else:
        state_dict = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        if first:
            model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
            models.save_full(model, state_dict, policy_path, env.model, folder, dtype)
    if first:
        _declare(folder, env, tokenizer.pad_token_id)
        tokenizer.save_pretrained(str(folder))
    trainer.accelerator.wait_for_everyone()


def _merged(policy_path: Path | str, env: TrainEnv) -> Any:
    """The policy's body with the trained adapters added to it, and the trained `score`."""
    import peft

    model = _load(policy_path, env, torch.float32)
    return peft.PeftModel.from_pretrained(model, str(models.adapter_folder(env.output_dir))).merge_and_unload()


def _declare(folder: Path, env: TrainEnv, pad_token_id: int) -> None:
    """One output, the pad token and `READS_TURNS` in the configuration, which is the policy's so far."""
    config = AutoConfig.from_pretrained(str(folder), num_labels=1, trust_remote_code=env.model.trust_remote_code)
    config.get_text_config().pad_token_id = pad_token_id
    setattr(config, READS_TURNS, True)
    config.save_pretrained(str(folder))
