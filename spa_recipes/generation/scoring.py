"""Log-probabilities of given responses: one pass over all of them, logits at the response tokens only."""

import inspect
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from functools import partial
from itertools import cycle, islice
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from spa_recipes.algo.logps import CHUNK_SIZE, LmHead, at_least_fp32, target_logps, tiled_token_logps
from spa_recipes.errors import DataError, StageError
from spa_recipes.generation.engines import Progress
from spa_recipes.generation.lm_head import checked_lm_head, hidden_states, logits_at
from spa_recipes.generation.packing import (
    Batch,
    Group,
    Layout,
    Scored,
    Spans,
    alone,
    as_grid,
    batches,
    groups_of,
    packed,
    packed_attention,
    padded,
)
from spa_recipes.generation.threads import keep_freed_memory, side_by_side
from spa_recipes.models.causal import TOLERANCE, reads_lengths
from spa_recipes.models.dtype import in_float64
from spa_recipes.models.products import fast_products

__all__ = ["Rule", "Scored", "Values", "score", "scoring_pass", "sequence_logps", "token_logps"]

CPU_TOKENS = 1536
"""Tokens per forward pass at most on a CPU: more of them no longer fit its caches, and take longer each."""

CPU_WORDS = 2048
"""Words of the vocabulary whose logits exist at one time on a CPU; those of a pass take 12 MB then."""

Values = tuple[float, ...]
"""What one pass gives for an item."""

Passes = Generator[tuple[list[Group], list[Values]]]
"""The groups of each pass, and the values of their items."""


class Rule(NamedTuple):
    """What a pass computes.

    Attributes:
        within: entered around each pass, in its thread.
        token_logps: log-probs (N,) from hidden states (N, D), the output layer and the targets (N,).
        read: the values of each item from the sums of its token log-probs (B,), in float64.
        by_token: the log-probs of its tokens follow these values.
    """

    within: Callable[[], AbstractContextManager[object]]
    token_logps: Callable[[torch.Tensor, LmHead, torch.Tensor], torch.Tensor]
    read: Callable[[torch.Tensor], list[Values]]
    by_token: bool = False


def sequence_logps(
    model: PreTrainedModel,
    items: Sequence[Scored],
    *,
    tokens_per_batch: int,
    onednn_products: bool = True,
    on_progress: Progress | None = None,
    first_item: int = 0,
) -> list[float]:
    """log pi(y|x) of each item: the sum over its response tokens, in nats, in the order of the items.

    A result does not depend on the other items, beyond rounding. Logits exist for a chunk of response tokens at a time
    only, except for models whose output layer is not a matrix. A prompt is computed once for all its responses, if the
    model supports that and it is less work.

    Args:
        model: a causal language model in evaluation mode.
        items: prompts and responses as token ids.
        tokens_per_batch: most tokens in work at once, padding included; a longer item gets a pass of its own.
        onednn_products: as in `compute` of a recipe.
        on_progress: called after each pass.
        first_item: number of the first item, for error messages.

    Raises:
        ValueError: an item has an empty prompt or response.
        DataError: texts are longer than those that the model reads by themselves.
        StageError: a result is NaN or infinite.
    """
    rule = Rule(lambda: scoring_pass(model.device, onednn_products), _by_head, lambda sums_B: [*zip(sums_B.tolist())])
    return [logp for (logp,) in score(model, items, rule, tokens_per_batch, on_progress, first_item)]


def token_logps(
    model: PreTrainedModel,
    items: Sequence[Scored],
    *,
    tokens_per_batch: int,
    onednn_products: bool = True,
    on_progress: Progress | None = None,
    first_item: int = 0,
) -> list[list[float]]:
    """log pi(y_t|x, y_<t) of each response token of each item; all else as `sequence_logps`."""
    within = partial(scoring_pass, model.device, onednn_products)
    rule = Rule(within, _by_head, lambda sums_B: [()] * len(sums_B), by_token=True)
    return [[*logps] for logps in score(model, items, rule, tokens_per_batch, on_progress, first_item)]


def score(
    model: PreTrainedModel,
    items: Sequence[Scored],
    rule: Rule,
    tokens_per_batch: int,
    on_progress: Progress | None,
    first_item: int,
) -> list[Values]:
    """The values that `rule` gives each item; arguments and errors as in `sequence_logps`."""
    for index, item in enumerate(items):
        if not item.prompt_ids or not item.response_ids:
            raise ValueError(f"item {first_item + index} has an empty {'response' if item.prompt_ids else 'prompt'}")
    if not items:
        return []
    if model.device.type == "cpu":
        keep_freed_memory()
    if any("dynamic" in kind for kind in _length_kinds(model)):
        _refuse_growing(model, items)
    values: list[Values] = [()] * len(items)
    done = tokens = 0
    head = checked_lm_head(model, items[0].prompt_ids + items[0].response_ids)
    if head is not None and _can_be_packed(model, items):
        passes = _packed_passes(model, head, items, tokens_per_batch, rule)
    else:
        passes = _padded_passes(model, head, items, tokens_per_batch, rule)
    with closing(passes):
        for groups, of_items in passes:
            members = [i for group in groups for i in group.items]
            for i, value in zip(members, of_items, strict=True):
                for number in value:
                    if not math.isfinite(number):
                        raise StageError(
                            f"the log-probability of item {first_item + i} is {number}",
                            fix="look for a training stage that diverged, or set model.dtype to float32",
                        )
                values[i] = value
            done += len(members)
            tokens += sum(len(items[i].prompt_ids) + len(items[i].response_ids) for i in members)
            if on_progress is not None:
                on_progress(done, tokens)
    return values


def _packed_passes(
    model: PreTrainedModel, head: LmHead, items: Sequence[Scored], tokens_per_batch: int, rule: Rule
) -> Passes:
    """All tokens of a pass in one row; on a CPU as many passes at a time as it has threads."""
    on_cpu = model.device.type == "cpu"
    at_once = max(1, tokens_per_batch // CPU_TOKENS) if on_cpu else 1
    most = min(tokens_per_batch, CPU_TOKENS) if on_cpu else tokens_per_batch
    passes = list(batches(groups_of(items, most), most, padding=not on_cpu))
    with packed_attention(model) as seen_as:

        def values(groups: list[Group]) -> list[Values]:
            with rule.within():
                batch, spans = packed(groups, model.device)
                with seen_as(_layout(spans, model.device)):
                    hidden_1TD = hidden_states(model, batch.input_ids, batch.positions)
                logps_N = rule.token_logps(hidden_1TD.flatten(0, 1)[batch.at], head, batch.targets)
                return _values(rule, batch, logps_N)

        yield from zip(passes, side_by_side(values, passes, at_once), strict=True)


def _padded_passes(
    model: PreTrainedModel, head: LmHead | None, items: Sequence[Scored], tokens_per_batch: int, rule: Rule
) -> Passes:
    """A text per row, for every model; without `head` by the model's own logits."""
    most = min(tokens_per_batch, CPU_TOKENS) if model.device.type == "cpu" else tokens_per_batch
    for groups in batches(alone(items), 1 if _reads_lengths(model, items) else most, padding=True):
        with rule.within():
            batch = padded(groups, model.device)
            if head is None:
                logps_N = _by_forward(model, batch)
            else:
                hidden_BTD = hidden_states(model, batch.input_ids)
                logps_N = rule.token_logps(hidden_BTD.flatten(0, 1)[batch.at], head, batch.targets)
            values = _values(rule, batch, logps_N)
        yield groups, values


def _layout(spans: Spans, device: torch.device) -> Layout:
    return spans if device.type == "cpu" else as_grid(spans, device)


@contextmanager
def scoring_pass(device: torch.device, onednn_products: bool) -> Iterator[None]:
    """Surround a forward pass that scores: no gradients, and fast products."""
    with torch.inference_mode(), fast_products(device) if onednn_products else nullcontext():
        yield


def _values(rule: Rule, batch: Batch, logps_N: torch.Tensor) -> list[Values]:
    """The values of each item; its tokens stand together, in their order."""
    values = rule.read(_by_item(batch, logps_N))
    if not rule.by_token:
        return values
    ends = torch.bincount(batch.item).cumsum(dim=0).tolist()
    logps = in_float64(logps_N).tolist()
    return [(*value, *logps[start:end]) for value, start, end in zip(values, [0, *ends[:-1]], ends, strict=True)]


def _by_item(batch: Batch, logps_N: torch.Tensor) -> torch.Tensor:
    """Sums of the token log-probs of each item, in float64."""
    exact_N = in_float64(logps_N)
    sums_B = exact_N.new_zeros(int(batch.item[-1]) + 1)
    return sums_B.index_add_(0, batch.item.to(exact_N.device), exact_N)


def _by_head(hidden_ND: torch.Tensor, head: LmHead, targets_N: torch.Tensor) -> torch.Tensor:
    """Token log-probs from hidden states and output layer, logits tile by tile."""
    tile = (CPU_TOKENS, CPU_WORDS) if hidden_ND.device.type == "cpu" else (CHUNK_SIZE, len(head.weight))
    return tiled_token_logps(hidden_ND, head, targets_N, rows=tile[0], columns=tile[1])


def _by_forward(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Token log-probs from the model's own logits, one item at a time: slow, and right for every model."""
    width = batch.input_ids.shape[1]
    logps = []
    for row, input_ids_T in enumerate(batch.input_ids):
        mine_N = batch.item == row
        at_n = batch.at[mine_N] - row * width
        without_padding_1T = input_ids_T[None, : int(at_n[-1]) + 2]
        output = logits_at(model, at_n, input_ids=without_padding_1T, use_cache=False)
        logps.append(target_logps(at_least_fp32(output.logits[0]), batch.targets[mine_N]))
    return torch.cat(logps)


# --- which models can read all texts in one row


def _can_be_packed(model: PreTrainedModel, items: Sequence[Scored]) -> bool:
    """Whether a model's attention can see separate texts while the rest of it sees one row; this is tried out, too."""
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    longest = max(len(item.prompt_ids) + len(item.response_ids) for item in items)
    # A window is part of a mask that `sdpa` would not be given; flash attention knows it by itself.
    known = config._attn_implementation == "sdpa" and (window is None or window >= longest)
    known = known or config._attn_implementation in ("flash_attention_2", "flash_attention_3")
    takes_positions = "position_ids" in inspect.signature(type(model.base_model).forward).parameters
    return known and takes_positions and not _length_kinds(model) and _agree(model, items)


def _length_kinds(model: PreTrainedModel) -> list[str]:
    """The kinds of rotary embedding, if any, by which the model reads a text depending on the longest one of a pass."""
    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    kinds = [str(value.get("rope_type")) for value in (rope, *rope.values()) if isinstance(value, dict)]
    return [kind for kind in kinds if kind == "longrope" or "dynamic" in kind]


def _reads_lengths(model: PreTrainedModel, items: Sequence[Scored]) -> bool:
    """Whether the model reads a text otherwise where more tokens stand behind it: it says so, or shows it."""
    if _length_kinds(model):
        return True
    texts = sorted((item.prompt_ids + item.response_ids for item in items), key=len)
    return reads_lengths(model, texts[-1], len(texts[0]))


def _refuse_growing(model: PreTrainedModel, items: Sequence[Scored]) -> None:
    """Refuse texts for which a dynamic rotary embedding grows: it stays so for the shorter texts after them.

    Raises:
        DataError: names the limit.
    """
    config = model.config.get_text_config()
    longest = max(len(item.prompt_ids) + len(item.response_ids) for item in items)
    limit = getattr(config, "original_max_position_embeddings", None) or config.max_position_embeddings
    if longest > limit:
        raise DataError(
            f"a text of {longest} tokens is longer than {limit}, from where on this model's positions (dynamic) depend "
            "on the texts before it",
            where=str(config.name_or_path),
            fix=f"set the largest length to {limit}",
        )


@torch.inference_mode()
def _agree(model: PreTrainedModel, items: Sequence[Scored]) -> bool:
    """Whether texts look the same to the model in one row and in rows of their own: short ones, and the longest one."""
    ids = list(islice(cycle(token for item in items for token in item.prompt_ids + item.response_ids), 39))
    some = [Scored(ids[:16], ids[16:24]), Scored(ids[:16], ids[24:29]), Scored(ids[29:36], ids[36:])]
    # An attention that changes with the length of a text shows it on a long one only.
    ordered = sorted(items, key=lambda item: len(item.prompt_ids) + len(item.response_ids))
    return all(_look_the_same(model, texts) for texts in (some, [ordered[0], ordered[-1]]))


def _look_the_same(model: PreTrainedModel, some: Sequence[Scored]) -> bool:
    groups = groups_of(some, sum(len(item.prompt_ids) + len(item.response_ids) for item in some))
    apart = (padded(alone([some[i]]), model.device) for group in groups for i in group.items)
    try:
        apart_ND = torch.cat([hidden_states(model, batch.input_ids).flatten(0, 1)[batch.at] for batch in apart])
        with packed_attention(model) as seen_as:
            batch, spans = packed(groups, model.device)
            with seen_as(_layout(spans, model.device)):
                together_ND = hidden_states(model, batch.input_ids, batch.positions).flatten(0, 1)[batch.at]
    except (TypeError, ValueError, RuntimeError, IndexError):  # its attention is another one, or it has fewer positions
        return False
    off = (together_ND - apart_ND).abs().max()
    return bool(off <= TOLERANCE[model.dtype] * apart_ND.abs().max())
