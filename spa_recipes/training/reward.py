"""A reward model on TRL's RewardTrainer: a policy's body with a new output of one number, trained on labelled pairs."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import AutoConfig, PreTrainedModel
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import suppress_seqcls_warning

from spa_recipes.algo.reward import READS_TURNS, pairwise_loss
from spa_recipes.errors import DataError, RecipeError
from spa_recipes.models.adapters import lora_config
from spa_recipes.models.loading import load_reward_model
from spa_recipes.recipe.schema import Training
from spa_recipes.training import common
from spa_recipes.training.common import Rows
from spa_recipes.training.dropout import check_no_dropout, switch_off_dropout
from spa_recipes.training.env import TrainEnv, TrainResult
from spa_recipes.training.pair_rows import PairCollator, longest_text, pair_lengths, pair_tokens
from spa_recipes.training.sharding import is_loaded_in_shares
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
    table = common.checked_rows(rows, ("prompt_ids", "chosen_ids", "rejected_ids"))
    lora = env.model.lora
    if lora is not None and lora.load_in_4bit:
        raise RecipeError(
            "a reward model is not trained in 4 bits",
            where="model.lora.load_in_4bit",
            fix="set it to false, or give a finished reward model by judge.model_name_or_path",
        )
    dtype = common.training_dtype(env.model)
    args = RewardConfig(
        **common.trainer_arguments(settings, env, dtype, len(table)), max_length=None, disable_dropout=False
    )
    model = common.ready_to_train(_load(policy_path, env, torch.float32 if lora is None else dtype), args)
    switch_off_dropout(model)
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
    common.train_in_float32(trainer.model)
    if not is_loaded_in_shares():
        with trainer.accelerator.autocast():
            example = table[0]["prompt_ids"] + table[0]["chosen_ids"]
            check_no_dropout(trainer.model, example, common.tolerance(dtype))
            longest, shortest = longest_text(table), min(pair_lengths(table, min))
            trainer.reads_alone = common.must_read_alone(trainer.model, longest, shortest, dtype, env, masked=True)
    resumed_from = common.fit(trainer, env)
    kept = common.save_trained(
        trainer,
        replace(env, adapter_dir=None),  # an adapter of a reward model is of no use
        dtype,
        tokenizer,
        source=policy_path,
        load_source=lambda: _load(policy_path, env, torch.float32),
    )
    if trainer.is_world_process_zero():
        _declare(env, tokenizer.pad_token_id)
    tokens = pair_tokens(table) * settings.num_train_epochs
    return common.finish(trainer, env, resumed_from, len(table), tokens, kept)


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
        self._seen: list[tuple[torch.Tensor, ...]] = []
        super().__init__(model=model, args=args, train_dataset=rows, **kwargs)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """The micro-batch's share of the mean over the pairs of the step; chosen sequences come first."""
        ids_BT, mask_BT = inputs["input_ids"], inputs["attention_mask"]
        texts = [(ids_BT, mask_BT)]
        if self.reads_alone:
            ends = mask_BT.sum(dim=1).tolist()
            texts = [(ids_BT[i : i + 1, :end], mask_BT[i : i + 1, :end]) for i, end in enumerate(ends)]
        rewards = [model(input_ids=ids, attention_mask=mask, use_cache=False).logits for ids, mask in texts]
        chosen_B, rejected_B = torch.cat(rewards).squeeze(-1).float().chunk(2)
        loss_B = pairwise_loss(chosen_B, rejected_B)
        self._seen.append((inputs["row"], loss_B.detach(), chosen_B.detach(), rejected_B.detach()))
        return self._share_of_step(loss_B, inputs["row"])

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Before the optimizer step: stop where loss or gradient is not finite, and note the figures of the pairs."""
        norm = super()._get_grad_norm(model, grad_norm)
        seen, self._seen = self._seen, []
        row_N, loss_N, chosen_N, rejected_N = self._pairs_of_step(seen)
        self._stop_unless_finite(loss_N, row_N, norm)
        figures = {
            "rewards/chosen": chosen_N,
            "rewards/rejected": rejected_N,
            "rewards/margins": chosen_N - rejected_N,
            "rewards/accuracies": (chosen_N > rejected_N).double(),
        }
        for name, values in figures.items():
            self._metrics["train"][name].append(values.mean().item())
        return norm


def _load(path: Path | str, env: TrainEnv, dtype: torch.dtype) -> PreTrainedModel:
    """The body of the policy with a new `score`, drawn with the training's seed."""
    with suppress_seqcls_warning(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(env.seed)
        return load_reward_model(path, env.model, dtype, new_head=True)


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
    config = lora_config(env.model.lora)
    config.task_type, config.modules_to_save = "SEQ_CLS", ["score"]
    return config


def _declare(env: TrainEnv, pad_token_id: int) -> None:
    """Write one output, the pad token and `READS_TURNS` into the saved configuration, which is still the policy's."""
    folder = str(env.output_dir)
    config = AutoConfig.from_pretrained(folder, num_labels=1, trust_remote_code=env.model.trust_remote_code)
    config.get_text_config().pad_token_id = pad_token_id
    setattr(config, READS_TURNS, True)
    config.save_pretrained(folder)
