"""Rewards of conversations by a reward model: a sequence-classification model with one output."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from spa_recipes.algo.reward import use_score_head
from spa_recipes.errors import DataError
from spa_recipes.generation.engines import Progress
from spa_recipes.generation.scoring import CPU_TOKENS, scoring_pass
from spa_recipes.generation.transformers import compute_dtype, load_error, local_device, out_of_memory
from spa_recipes.recipe import schema


def reward_config(model: schema.Model) -> PretrainedConfig:
    """The configuration of a reward model, without its weights.

    Args:
        model: `model_name_or_path` is the reward model's.

    Raises:
        DataError: there is no such model, or it has not exactly one output.
        TryAgainError: the Hub is out of reach.
    """
    path = model.model_name_or_path
    try:
        config = AutoConfig.from_pretrained(
            path,
            revision=None if Path(path).is_dir() else model.revision,
            local_files_only=Path(path).is_dir(),
            trust_remote_code=model.trust_remote_code,
        )
    except (OSError, ValueError) as error:
        raise load_error(error, path) from error
    if config.num_labels != 1:
        raise DataError(
            f"a reward model has one output (num_labels 1), not {config.num_labels}",
            where=path,
            fix="name a reward model, saved with num_labels=1",
        )
    return config


def load_reward_model(model: schema.Model) -> PreTrainedModel:
    """Load a reward model for inference, on the GPU where there is one.

    Raises:
        DataError: as `reward_config`; weights are missing, such as those of the output.
        TryAgainError: out of memory, or the Hub is out of reach.
    """
    path, config, device = model.model_name_or_path, reward_config(model), local_device()
    try:
        with out_of_memory("load the reward model on a larger device, or set model.dtype to bfloat16"):
            loaded, info = AutoModelForSequenceClassification.from_pretrained(
                path,
                config=config,
                use_safetensors=True,
                revision=None if Path(path).is_dir() else model.revision,
                local_files_only=Path(path).is_dir(),
                dtype=compute_dtype(model.dtype, device),
                attn_implementation=model.attn_implementation,
                trust_remote_code=model.trust_remote_code,
                output_loading_info=True,
            )
            use_score_head(loaded)
            loaded = loaded.to(device).eval()
    except (OSError, ValueError, SafetensorError) as error:
        raise load_error(error, path) from error
    if info["missing_keys"]:
        raise DataError(
            f"the weights of {', '.join(sorted(info['missing_keys'])[:3])} are missing",
            where=path,
            fix="name a whole reward model, not a language model",
        )
    return loaded


def sequence_rewards(
    model: PreTrainedModel,
    sequences: Sequence[list[int]],
    *,
    tokens_per_batch: int,
    onednn_products: bool = True,
    on_progress: Progress | None = None,
) -> list[float]:
    """The model's output for each sequence, in their order; it may be NaN.

    A result does not depend on the other sequences, beyond rounding. A model whose configuration has no pad token is
    read at the last token of each sequence; others read it at the last one that is not their pad token.

    Args:
        model: as `load_reward_model` gives it.
        sequences: token ids of whole conversations, none of them empty.
        tokens_per_batch: padded tokens per forward pass at most; a longer sequence gets a pass of its own.
        onednn_products: as in `compute` of a recipe.
        on_progress: called after each pass.

    Raises:
        TryAgainError: out of memory.
    """
    if model.device.type == "cpu":
        tokens_per_batch = min(tokens_per_batch, CPU_TOKENS)
    rewards = [0.0] * len(sequences)
    done = tokens = 0
    config = model.config.get_text_config()
    pad_token_id = config.pad_token_id
    try:
        for indices in _batches(sequences, tokens_per_batch):
            batch = [sequences[i] for i in indices]
            if pad_token_id is None:
                config.pad_token_id = _ends_none(batch)
            ids_BT, mask_BT = _padded(batch, config.pad_token_id, model.device)
            with scoring_pass(model.device, onednn_products):
                logits_B1 = model(input_ids=ids_BT, attention_mask=mask_BT).logits
                values = logits_B1.squeeze(-1).double().tolist()
            for index, value in zip(indices, values, strict=True):
                rewards[index] = value
            done += len(indices)
            tokens += sum(map(len, batch))
            if on_progress is not None:
                on_progress(done, tokens)
    finally:
        config.pad_token_id = pad_token_id
    return rewards


def _batches(sequences: Sequence[list[int]], tokens_per_batch: int) -> Iterator[list[int]]:
    """Indices of the sequences of each pass, the longest first: memory runs out at once or not at all."""
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
    begin = 0
    while begin < len(order):
        size = max(1, tokens_per_batch // len(sequences[order[begin]]))
        yield order[begin : begin + size]
        begin += size


def _padded(batch: list[list[int]], pad_token_id: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, (B, T) each, padded on the right."""
    width = max(map(len, batch))
    ids = [sequence + [pad_token_id] * (width - len(sequence)) for sequence in batch]
    mask = [[1] * len(sequence) + [0] * (width - len(sequence)) for sequence in batch]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _ends_none(batch: list[list[int]]) -> int:
    """The smallest token id that is not the last of any sequence."""
    last = {sequence[-1] for sequence in batch}
    return next(token for token in range(len(batch) + 1) if token not in last)
