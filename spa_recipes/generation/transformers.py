"""Sampling with transformers: ragged prompts without padding, one prefill per prompt, finished answers dropped."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from spa_recipes.algo.logps import at_least_fp32, target_logps
from spa_recipes.errors import StageError
from spa_recipes.generation.engines import Progress
from spa_recipes.generation.kept import Kept, stop_if_another_model
from spa_recipes.generation.lm_head import logits_at
from spa_recipes.generation.requests import Completion, Request, check_logps

DROP_SHARE = 0.125
"""Finished answers leave the batch when they are this share of it: dropping them copies the cache of the others."""

TRIED = 4
"""So many texts are read again at once, to see whether the model that was sampled token by token is the same."""


def sample(
    model: PreTrainedModel,
    requests: Sequence[Request],
    *,
    temperature: float,
    top_p: float,
    max_tokens: int,
    stop_ids: Sequence[int],
    seed_of: Callable[[Request], int],
    batch_size: int,
    on_progress: Progress | None = None,
    compare: bool = True,
) -> list[Completion]:
    """Sample one answer for each request.

    Each request draws one uniform number per token from its own generator, so its answer does not depend on the
    requests beside it, beyond rounding.

    Args:
        model: a causal language model in evaluation mode.
        requests: in any order; those with equal prompts share the computation of the prompt.
        temperature: 0 is greedy.
        top_p: nucleus; 1 keeps the whole vocabulary.
        max_tokens: tokens per answer, the end-of-turn token included.
        stop_ids: token ids that end an answer; the answer keeps the one that ended it.
        seed_of: seed of a request, below 2**63.
        batch_size: answers decoded together.
        on_progress: called after each batch.
        compare: after the first batch, compare what was kept of its longest texts with one pass over them.

    Returns:
        Completions in the order of the requests.

    Raises:
        ValueError: a request has an empty prompt.
        StageError: the model gives NaN or infinite log-probabilities, or is another one when it is sampled from.
    """
    for request in requests:
        if not request.prompt_ids:
            raise ValueError(f"request {request.prompt_id!r} has an empty prompt")
    completions: dict[int, Completion] = {}
    tokens = 0
    for batch in _batches(requests, batch_size, max_spread=max_tokens // 2):
        answers = _sample_batch(model, [requests[i] for i in batch], temperature, top_p, max_tokens, stop_ids, seed_of)
        if compare and not completions:
            stop_if_another_model(model, _longest([requests[i] for i in batch], answers))
        completions.update(zip(batch, answers, strict=True))
        tokens += sum(len(answer.response_ids) for answer in answers)
        if on_progress is not None:
            on_progress(len(completions), tokens)
    return [completions[i] for i in range(len(requests))]


def _batches(requests: Sequence[Request], batch_size: int, max_spread: int) -> Iterator[list[int]]:
    """Indices of the requests of each batch, prompts in ascending length.

    Sampling starts where the shortest prompt of a batch ends. Each token by which the longest prompt exceeds it costs
    a step; `max_spread` is the most.
    """
    # Sorting by the prompt itself as well keeps the samples of one prompt together.
    order = sorted(range(len(requests)), key=lambda i: (len(requests[i].prompt_ids), requests[i].prompt_ids, i))
    batch: list[int] = []
    for i in order:
        full = len(batch) == batch_size
        if full or (batch and len(requests[i].prompt_ids) - len(requests[batch[0]].prompt_ids) > max_spread):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


@torch.inference_mode()
def _sample_batch(
    model: PreTrainedModel,
    requests: list[Request],
    temperature: float,
    top_p: float,
    max_tokens: int,
    stop_ids: Sequence[int],
    seed_of: Callable[[Request], int],
) -> list[Completion]:
    """Decode all requests together: the first step follows the shortest prompt; longer ones are fed until they end."""
    device = model.device
    shortest = min(len(request.prompt_ids) for request in requests)
    offsets = [len(request.prompt_ids) - shortest for request in requests]
    steps = max(offsets) + max_tokens
    prompt_rest_SB, uniforms_SB = _tables(requests, offsets, steps, max_tokens, seed_of, device)
    ends_B = torch.tensor(offsets, device=device) + max_tokens
    stops = torch.tensor(list(stop_ids), device=device, dtype=torch.long)
    tokens_SB = torch.zeros_like(prompt_rest_SB)
    logps_SB = torch.zeros_like(uniforms_SB)

    logits_BV, cache = _prefill(model, [request.prompt_ids[:shortest] for request in requests])
    rows_B = torch.arange(len(requests), device=device)
    done_B = torch.zeros(len(requests), dtype=torch.bool, device=device)
    for step in range(steps):
        tokens_B, logps_B = _choose(logits_BV, uniforms_SB[step, rows_B], temperature, top_p)
        ended_B = torch.isin(tokens_B, stops)
        if step < max(offsets):
            rest_B = prompt_rest_SB[step, rows_B]
            in_prompt_B = rest_B >= 0
            tokens_B = torch.where(in_prompt_B, rest_B, tokens_B)
            ended_B &= ~in_prompt_B
        tokens_SB[step, rows_B] = tokens_B
        logps_SB[step, rows_B] = logps_B
        done_B |= ended_B | (ends_B[rows_B] == step + 1)
        num_done = int(done_B.sum())
        if num_done == len(rows_B):
            break
        if num_done >= DROP_SHARE * len(rows_B):
            going = (~done_B).nonzero()[:, 0]
            cache.reorder_cache(going)
            rows_B, tokens_B, done_B = rows_B[going], tokens_B[going], done_B[going]
        output = logits_at(model, 1, input_ids=tokens_B[:, None], past_key_values=cache, use_cache=True)
        logits_BV = output.logits[:, -1]

    return [
        _completion(request, tokens[offset : offset + max_tokens], logps[offset : offset + max_tokens], set(stop_ids))
        for request, offset, tokens, logps in zip(
            requests, offsets, tokens_SB.T.tolist(), logps_SB.T.tolist(), strict=True
        )
    ]


def _longest(requests: Sequence[Request], answers: Sequence[Completion]) -> list[Kept]:
    """The longest texts of a batch."""
    texts = [
        Kept(answer.prompt_id, answer.sample, request.prompt_ids, answer.response_ids, answer.logps)
        for request, answer in zip(requests, answers, strict=True)
    ]
    return sorted(texts, key=lambda text: -len(text.prompt_ids) - len(text.response_ids))[:TRIED]


def _prefill(model: PreTrainedModel, prompts: list[list[int]]) -> tuple[torch.Tensor, Cache]:
    """Run each distinct prompt (all of equal length) once; logits of its last position and the cache, per row."""
    distinct = {tuple(prompt): None for prompt in prompts}
    where = {prompt: i for i, prompt in enumerate(distinct)}
    input_ids = torch.tensor(list(distinct), device=model.device)
    output = logits_at(model, 1, input_ids=input_ids, use_cache=True)
    logits_PV, cache = output.logits[:, -1], output.get("past_key_values")
    if not isinstance(cache, Cache):
        raise StageError(f"{type(model).__name__} has no key-value cache", fix="use another model or backend")
    cache.layers = [_RoomyLayer(layer) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    if len(distinct) == len(prompts):
        return logits_PV, cache
    index_B = torch.tensor([where[tuple(prompt)] for prompt in prompts], device=model.device)
    cache.reorder_cache(index_B)
    return logits_PV[index_B], cache


class _RoomyLayer(DynamicLayer):  # type: ignore[misc]  # transformers is not typed
    """Keys and values with room for more tokens, where a `DynamicLayer` copies all of them at each one."""

    room = 32

    def __init__(self, layer: DynamicLayer) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = layer.dtype, layer.device, layer.is_initialized
        self.keys, self.values = layer.keys, layer.values
        self.all_keys, self.all_values = layer.keys, layer.values

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        begin, end = self.keys.shape[-2], self.keys.shape[-2] + key_states.shape[-2]
        if end > self.all_keys.shape[-2]:
            padding = (0, 0, 0, max(self.room, key_states.shape[-2]))
            self.all_keys = torch.nn.functional.pad(self.keys, padding)
            self.all_values = torch.nn.functional.pad(self.values, padding)
        self.all_keys[..., begin:end, :] = key_states
        self.all_values[..., begin:end, :] = value_states
        self.keys, self.values = self.all_keys[..., :end, :], self.all_values[..., :end, :]
        return self.keys, self.values

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        length = self.keys.shape[-2]
        self.all_keys = self.all_keys.index_select(0, beam_idx)
        self.all_values = self.all_values.index_select(0, beam_idx)
        self.keys, self.values = self.all_keys[..., :length, :], self.all_values[..., :length, :]


def _choose(
    logits_BV: torch.Tensor, uniforms_B: torch.Tensor, temperature: float, top_p: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The token that each row's uniform number picks, and its log-probability at temperature 1."""
    logits_BV = at_least_fp32(logits_BV)
    if temperature == 0:
        tokens_B = logits_BV.argmax(-1)
    else:
        probs_BV = torch.softmax(logits_BV / temperature, dim=-1)
        if top_p < 1:
            probs_BV = _nucleus(probs_BV, top_p)
        cdf_BV = probs_BV.cumsum(-1)
        total_B = cdf_BV[:, -1]
        # Strictly below the total, or the last token could be picked at probability 0.
        target_B = torch.minimum(uniforms_B * total_B, torch.nextafter(total_B, torch.zeros_like(total_B)))
        tokens_B = torch.searchsorted(cdf_BV, target_B[:, None], right=True)[:, 0]
        tokens_B.clamp_(max=logits_BV.shape[-1] - 1)  # NaN logits have no place in the order; they are reported later
    return tokens_B, target_logps(logits_BV, tokens_B)


def _nucleus(probs_BV: torch.Tensor, top_p: float) -> torch.Tensor:
    """Zero the tokens outside the smallest set of likeliest ones that holds `top_p` of the probability."""
    sorted_BV, order_BV = probs_BV.sort(dim=-1, descending=True, stable=True)
    outside_BV = sorted_BV.cumsum(-1) - sorted_BV >= top_p
    return torch.zeros_like(probs_BV).scatter(-1, order_BV, sorted_BV.masked_fill(outside_BV, 0.0))


def _tables(
    requests: list[Request],
    offsets: list[int],
    steps: int,
    max_tokens: int,
    seed_of: Callable[[Request], int],
    device: torch.device,
) -> tuple[torch.Tensor, torch.Tensor]:
    """For each step and request: the next token of a prompt that is not over, else -1, and a uniform number."""
    prompt_rest_SB = torch.full((steps, len(requests)), -1)
    uniforms_SB = torch.zeros(steps, len(requests))
    for row, (request, offset) in enumerate(zip(requests, offsets, strict=True)):
        if offset:
            prompt_rest_SB[:offset, row] = torch.tensor(request.prompt_ids[-offset:])
        # Drawn on the CPU, so that a GPU sees the same numbers.
        generator = torch.Generator().manual_seed(seed_of(request))
        uniforms_SB[offset : offset + max_tokens, row] = torch.rand(max_tokens, generator=generator)
    return prompt_rest_SB.to(device), uniforms_SB.to(device)


def _completion(request: Request, tokens: list[int], logps: list[float], stop_ids: set[int]) -> Completion:
    length = next((i + 1 for i, token in enumerate(tokens) if token in stop_ids), len(tokens))
    stopped = tokens[length - 1] in stop_ids
    check_logps(request, logps[:length])
    return Completion(
        request.prompt_id, request.sample, tokens[:length], logps[:length], "stop" if stopped else "length"
    )
