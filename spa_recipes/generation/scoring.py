"""Log-probabilities of given responses: one pass over all of them, logits at the response tokens only."""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from spa_recipes.algo.logps import LmHead, at_least_fp32, chunked_token_logps, target_logps
from spa_recipes.errors import StageError
from spa_recipes.generation.engines import Progress
from spa_recipes.generation.lm_head import TOLERANCE, checked_lm_head, hidden_states, logits_at
from spa_recipes.generation.packing import Batch, Pays, Scored, batches, cheaper_together, collate, never, rows_of
from spa_recipes.generation.transformers import out_of_memory

__all__ = ["Scored", "sequence_logps"]

CPU_TOKENS = 1024
"""Tokens per forward pass at most on a CPU: more of them no longer fit its caches, and take longer each."""

TokenLogps = Callable[[Batch], torch.Tensor]


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
    response tokens, except for models whose output layer is not a matrix. A prompt is computed once for its responses
    where the model can do that and it is less work.

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
    head = checked_lm_head(model, items[0].prompt_ids + items[0].response_ids)
    token_logps = _token_logps(model, head)
    done = tokens = 0
    for rows in batches(rows_of(items, _pays(model, head, items)), tokens_per_batch):
        members = [i for row in rows for i in row.items]
        batch = collate(rows, model.device, model.dtype)
        with out_of_memory("set compute.score_tokens_per_batch lower"), torch.inference_mode():
            sums_B = torch.zeros(len(members), dtype=torch.float64, device=model.device)
            sums = sums_B.index_add_(0, batch.item, token_logps(batch).double()).tolist()
        for i, value in zip(members, sums, strict=True):
            if not math.isfinite(value):
                raise StageError(
                    f"the log-probability of item {first_item + i} is {value}",
                    fix="look for a training stage that diverged, or set model.dtype to float32",
                )
            logps[i] = value
        done += len(members)
        tokens += sum(len(items[i].prompt_ids) + len(items[i].response_ids) for i in members)
        if on_progress is not None:
            on_progress(done, tokens)
    return logps


def _token_logps(model: PreTrainedModel, head: LmHead | None) -> TokenLogps:
    if head is None:
        return lambda batch: _by_forward(model, batch)
    return lambda batch: _by_head(model, head, batch)


def _by_head(model: PreTrainedModel, head: LmHead, batch: Batch) -> torch.Tensor:
    """Token log-probs from hidden states and output layer, logits in chunks."""
    hidden_BTD = hidden_states(model, batch.input_ids, batch.attention, batch.positions)
    hidden_ND = hidden_BTD.flatten(0, 1)[batch.at]
    return chunked_token_logps(hidden_ND, head.weight, batch.targets, head.bias, scale=head.scale, softcap=head.softcap)


def _by_forward(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Token log-probs from the model's own logits, one item at a time: slow, and right for every model."""
    width = batch.input_ids.shape[1]
    logps = []
    for row, input_ids_T in enumerate(batch.input_ids):
        mine_N = batch.item == row
        at_n = batch.at[mine_N] - row * width
        without_padding_1T = input_ids_T[None, : int(at_n[-1]) + 1]
        output = logits_at(model, at_n, input_ids=without_padding_1T, use_cache=False)
        logps.append(target_logps(at_least_fp32(output.logits[0]), batch.targets[mine_N]))
    return torch.cat(logps)


# --- responses that share their prompt


def _pays(model: PreTrainedModel, head: LmHead | None, items: Sequence[Scored]) -> Pays:
    """When responses of one prompt go into one row; never for models that cannot, which is found out by trying."""
    config = model.config.get_text_config()
    able = head is not None and _takes_masks(model, config, max(len(i.prompt_ids) + len(i.response_ids) for i in items))
    if not able or len({tuple(item.prompt_ids) for item in items}) == len(items):
        return never
    pays = cheaper_together(config)
    shared = next((row for row in rows_of(items, pays) if len(row.items) > 1), None)
    if shared is None or not _agree(model, [items[i] for i in shared.items[:2]]):
        return never
    return pays


def _takes_masks(model: PreTrainedModel, config: Any, longest: int) -> bool:
    """Whether a model can be told who sees whom: by its attention, and by a window that hides nothing by itself."""
    window = getattr(config, "sliding_window", None)
    return (
        config._attn_implementation in ("sdpa", "eager")
        and "position_ids" in inspect.signature(type(model.base_model).forward).parameters
        and (window is None or window >= longest)
    )


@torch.inference_mode()
def _agree(model: PreTrainedModel, items: Sequence[Scored]) -> bool:
    """Whether the first tokens of two responses look the same to the model in one row and in two."""
    short = [Scored(item.prompt_ids[-16:], item.response_ids[:8]) for item in items]

    def hidden(pays: Pays) -> torch.Tensor:
        batch = collate(rows_of(short, pays), model.device, model.dtype)
        states: torch.Tensor = hidden_states(model, batch.input_ids, batch.attention, batch.positions)
        return states.flatten(0, 1)[batch.at]

    try:
        together_ND = hidden(lambda lengths, prompt: True)
    except (TypeError, ValueError, RuntimeError):  # it takes no such mask
        return False
    apart_ND = hidden(never)
    off = (together_ND - apart_ND).abs().max()
    return bool(off <= TOLERANCE[model.dtype] * apart_ND.abs().max())
