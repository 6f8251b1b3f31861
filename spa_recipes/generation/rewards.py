"""Rewards of conversations by a reward model: a sequence-classification model with one output."""

from collections.abc import Iterator, Sequence

import torch
from transformers import PreTrainedModel

from spa_recipes.generation.engines import Progress
from spa_recipes.generation.scoring import CPU_TOKENS, scoring_pass
from spa_recipes.models.causal import reads_lengths
from spa_recipes.models.dtype import in_float64


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
        model: a reward model as `load_reward_model` gives it.
        sequences: token ids of whole conversations, none of them empty.
        tokens_per_batch: most tokens per forward pass, padding included; a longer sequence gets a pass of its own.
        onednn_products: as in `compute` of a recipe.
        on_progress: called after each pass.
    """
    if model.device.type == "cpu":
        tokens_per_batch = min(tokens_per_batch, CPU_TOKENS)
    rewards = [0.0] * len(sequences)
    done = tokens = 0
    config = model.config.get_text_config()
    pad_token_id = config.pad_token_id
    try:
        for indices in _batches(sequences, 1 if _reads_lengths(model, sequences) else tokens_per_batch):
            batch = [sequences[i] for i in indices]
            if pad_token_id is None:
                config.pad_token_id = _ends_none(batch)
            ids_BT, mask_BT = _padded(batch, config.pad_token_id, model.device)
            with scoring_pass(model.device, onednn_products):
                logits_B1 = model(input_ids=ids_BT, attention_mask=mask_BT).logits
                values = in_float64(logits_B1.squeeze(-1)).tolist()
            for index, value in zip(indices, values, strict=True):
                rewards[index] = value
            done += len(indices)
            tokens += sum(map(len, batch))
            if on_progress is not None:
                on_progress(done, tokens)
    finally:
        config.pad_token_id = pad_token_id
    return rewards


def _reads_lengths(model: PreTrainedModel, sequences: Sequence[list[int]]) -> bool:
    """Whether padding behind a sequence changes its reward."""
    texts = sorted(sequences, key=len)
    return bool(texts) and reads_lengths(model, texts[-1], len(texts[0]), masked=True)


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
