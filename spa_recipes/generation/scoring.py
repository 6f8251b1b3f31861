"""Log-probabilities of given responses: one pass over all of them, logits at the response tokens only."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from spa_recipes.algo.logps import LmHead, at_least_fp32, chunked_token_logps, target_logps
from spa_recipes.errors import StageError
from spa_recipes.generation.engines import Progress
from spa_recipes.generation.lm_head import checked_lm_head, hidden_states, logits_at
from spa_recipes.generation.transformers import out_of_memory

CPU_TOKENS = 1024
"""Tokens per forward pass at most on a CPU: more of them no longer fit its caches, and take longer each."""


class Scored(NamedTuple):
    """A response to score.

    Attributes:
        prompt_ids: token ids of the rendered prompt, at least one.
        response_ids: token ids of the response, at least one; its end-of-turn token counts when it is among them.
    """

    prompt_ids: list[int]
    response_ids: list[int]


class _Batch(NamedTuple):
    """Some items, padded on the right; each position but the last predicts the next token.

    Attributes:
        input_ids: (B, T) prompts and responses without their last token, which predicts nothing here.
        mask: (B, T) 1 at tokens, 0 at padding.
        at: (N,) places of the positions that predict response tokens, in the flattened B * T.
        row: (N,) row of each of them.
        targets: (N,) the response tokens themselves.
    """

    input_ids: torch.Tensor
    mask: torch.Tensor
    at: torch.Tensor
    row: torch.Tensor
    targets: torch.Tensor


TokenLogps = Callable[[_Batch], torch.Tensor]


def sequence_logps(
    model: PreTrainedModel,
    items: Sequence[Scored],
    *,
    tokens_per_batch: int,
    on_progress: Progress | None = None,
    first_item: int = 0,
) -> list[float]:
    """log pi(y|x) of each item: the sum over its response tokens, in nats, in the order of the items.

    A result does not depend on the other items, beyond rounding. Logits are never held for more than a chunk of
    response tokens, except for models whose output layer is not a matrix.

    Args:
        model: as `load_model` gives it.
        items: prompts and responses as token ids.
        tokens_per_batch: padded tokens per forward pass at most; a longer item gets a pass of its own.
        on_progress: called after each pass.
        first_item: number of the first item, for error messages.

    Raises:
        ValueError: an item has an empty prompt or response.
        StageError: a result is NaN or infinite.
        TryAgainError: out of memory.
    """
    for index, item in enumerate(items):
        if not item.prompt_ids or not item.response_ids:
            raise ValueError(f"item {first_item + index} has an empty {'response' if item.prompt_ids else 'prompt'}")
    if not items:
        return []
    if model.device.type == "cpu":
        tokens_per_batch = min(tokens_per_batch, CPU_TOKENS)
    logps = [0.0] * len(items)
    token_logps = _token_logps_of(model, items[0])
    done = tokens = 0
    for indices in _batches(items, tokens_per_batch):
        batch = _collate([items[i] for i in indices], model.device)
        with out_of_memory("set compute.score_tokens_per_batch lower"), torch.inference_mode():
            token_logps_N = token_logps(batch).double()
            sums_B = torch.zeros(len(indices), dtype=torch.float64, device=model.device)
            sums = sums_B.index_add_(0, batch.row, token_logps_N).tolist()
        for index, value in zip(indices, sums, strict=True):
            if not math.isfinite(value):
                raise StageError(
                    f"the log-probability of item {first_item + index} is {value}",
                    fix="look for a training stage that diverged, or set model.dtype to float32",
                )
            logps[index] = value
        done += len(indices)
        tokens += sum(len(items[i].prompt_ids) + len(items[i].response_ids) for i in indices)
        if on_progress is not None:
            on_progress(done, tokens)
    return logps


def _batches(items: Sequence[Scored], tokens_per_batch: int) -> Iterator[list[int]]:
    """Indices of the items of each pass, the longest first: memory runs out at once or not at all."""
    lengths = [len(item.prompt_ids) + len(item.response_ids) for item in items]
    order = sorted(range(len(items)), key=lambda i: -lengths[i])
    begin = 0
    while begin < len(order):
        size = max(1, tokens_per_batch // lengths[order[begin]])
        yield order[begin : begin + size]
        begin += size


def _collate(items: list[Scored], device: torch.device) -> _Batch:
    width = max(len(item.prompt_ids) + len(item.response_ids) for item in items) - 1
    input_ids: list[list[int]] = []
    mask: list[list[int]] = []
    at: list[int] = []
    row: list[int] = []
    for i, item in enumerate(items):
        length = len(item.prompt_ids) + len(item.response_ids) - 1
        input_ids.append(item.prompt_ids + item.response_ids[:-1] + [0] * (width - length))
        mask.append([1] * length + [0] * (width - length))
        at.extend(range(i * width + len(item.prompt_ids) - 1, i * width + length))
        row.extend([i] * len(item.response_ids))
    targets = [token for item in items for token in item.response_ids]
    return _Batch(*(torch.tensor(values, device=device) for values in (input_ids, mask, at, row, targets)))


def _token_logps_of(model: PreTrainedModel, example: Scored) -> TokenLogps:
    head = checked_lm_head(model, example.prompt_ids + example.response_ids)
    if head is None:
        return lambda batch: _by_forward(model, batch)
    return lambda batch: _by_head(model, head, batch)


def _by_head(model: PreTrainedModel, head: LmHead, batch: _Batch) -> torch.Tensor:
    """Token log-probs from hidden states and output layer, logits in chunks."""
    hidden_ND = hidden_states(model, batch.input_ids, batch.mask).flatten(0, 1)[batch.at]
    return chunked_token_logps(hidden_ND, head.weight, batch.targets, head.bias, scale=head.scale, softcap=head.softcap)


def _by_forward(model: PreTrainedModel, batch: _Batch) -> torch.Tensor:
    """Token log-probs from the model's own logits, one item at a time: slow, and right for every model."""
    width = batch.input_ids.shape[1]
    logps = []
    for row, (input_ids_T, mask_T) in enumerate(zip(batch.input_ids, batch.mask, strict=True)):
        mine_N = batch.row == row
        at_n = batch.at[mine_N] - row * width
        output = logits_at(model, at_n, input_ids=input_ids_T[mask_T.bool()][None], use_cache=False)
        logps.append(target_logps(at_least_fp32(output.logits[0]), batch.targets[mine_N]))
    return torch.cat(logps)
