"""Batches for scoring: which tokens a model reads in one pass, and which of its outputs predict which response token.

Everything in a transformer but attention treats tokens one by one. So all tokens of a pass stand in one row without
padding, a prompt once for all its responses; attention alone gets them text by text, each response behind its prompt.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface


class Scored(NamedTuple):
    """A response to score.

    Attributes:
        prompt_ids: token ids of the rendered prompt, at least one.
        response_ids: token ids of the response, at least one; its end-of-turn token counts when it is among them.
    """

    prompt_ids: list[int]
    response_ids: list[int]


class Group(NamedTuple):
    """A prompt and responses to it, which stand at `items` among all."""

    prompt_ids: list[int]
    responses: list[list[int]]
    items: list[int]

    @property
    def tokens(self) -> int:
        """Tokens that a model reads: the last one of a response predicts nothing here."""
        return len(self.prompt_ids) + sum(len(response) - 1 for response in self.responses)

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return len(self.prompt_ids) + max(map(len, self.responses))


class Spans(NamedTuple):
    """Where the tokens of each group stand in a row of T tokens: its prompt, then each response.

    Attention sees one text at a time, which costs no padding, and a call for every text: little on a CPU.
    """

    groups: list[list[slice]]


class Grid(NamedTuple):
    """How the tokens of a row lie in I texts of W places, padded on the right, which attention sees in one call.

    Attributes:
        of_texts: (I, W) the token at each place; any token at padding, which stands where no other one looks.
        of_tokens: (T,) a place of each token, in the flattened I * W.
    """

    of_texts: torch.Tensor
    of_tokens: torch.Tensor


Layout = Spans | Grid


class Batch(NamedTuple):
    """What a model reads in one pass.

    Attributes:
        input_ids: (1, T) all tokens; or (I, W), a text per row, padded on the right.
        positions: (1, T) places of the tokens in their texts; None where a text is a row.
        at: (N,) places of the positions that predict response tokens, in the flattened `input_ids`.
        item: (N,) item of each of them, counted within the batch.
        targets: (N,) the response tokens themselves.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor | None
    at: torch.Tensor
    item: torch.Tensor
    targets: torch.Tensor


def groups_of(items: Sequence[Scored], most: int) -> list[Group]:
    """Put items with equal prompts into groups of up to `most` tokens."""
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for i, item in enumerate(items):
        by_prompt.setdefault(tuple(item.prompt_ids), []).append(i)
    groups = []
    for members in by_prompt.values():
        group = _group(items, members[:1])
        for i in members[1:]:
            if group.tokens + len(items[i].response_ids) - 1 > most:
                groups.append(group)
                group = _group(items, [i])
            else:
                group = _group(items, [*group.items, i])
        groups.append(group)
    return groups


def alone(items: Sequence[Scored]) -> list[Group]:
    """Each item by itself."""
    return [_group(items, [i]) for i in range(len(items))]


def _group(items: Sequence[Scored], members: list[int]) -> Group:
    return Group(items[members[0]].prompt_ids, [items[i].response_ids for i in members], members)


def batches(groups: Sequence[Group], tokens_per_batch: int, *, padding: bool) -> Iterator[list[Group]]:
    """The groups of each pass, the longest texts first: memory runs out at once or not at all.

    Args:
        groups: all of them.
        tokens_per_batch: most tokens in a pass; a larger group gets a pass of its own.
        padding: count the places of texts as long as the longest one, instead of tokens.
    """
    batch: list[Group] = []
    texts = tokens = 0
    for group in sorted(groups, key=lambda group: -group.longest):
        texts, tokens = texts + len(group.items), tokens + group.tokens
        if batch and (texts * batch[0].longest if padding else tokens) > tokens_per_batch:
            yield batch
            batch, texts, tokens = [], len(group.items), group.tokens
        batch.append(group)
    if batch:
        yield batch


def packed(groups: Sequence[Group], device: torch.device) -> tuple[Batch, Spans]:
    """All tokens in one row, prompts once, and the texts that attention is to see."""
    ids, positions, spans = [], [], []  # type: list[int], list[int], list[list[slice]]
    at, item, targets = [], [], []  # type: list[int], list[int], list[int]
    texts = 0
    for group in groups:
        prompt = slice(len(ids), len(ids) + len(group.prompt_ids))
        spans.append([prompt])
        ids += group.prompt_ids
        positions += range(len(group.prompt_ids))
        for response in group.responses:
            own = slice(len(ids), len(ids) + len(response) - 1)
            spans[-1].append(own)
            ids += response[:-1]
            positions += range(len(group.prompt_ids), len(group.prompt_ids) + len(response) - 1)
            # The prompt's last token predicts the response's first one, and each token of it the next.
            at += [prompt.stop - 1, *range(own.start, own.stop)]
            item += [texts] * len(response)
            texts += 1
            targets += response
    (ids_1T, positions_1T) = (torch.tensor([values], device=device) for values in (ids, positions))
    at_N, item_N, targets_N = (torch.tensor(values, device=device) for values in (at, item, targets))
    return Batch(ids_1T, positions_1T, at_N, item_N, targets_N), Spans(spans)


def as_grid(spans: Spans, device: torch.device) -> Grid:
    """The same texts in one call of attention: a call costs a GPU more than some padding does."""
    texts = [
        [*range(prompt.start, prompt.stop), *range(own.start, own.stop)]
        for prompt, *all_own in spans.groups
        for own in all_own
    ]
    width = max(map(len, texts))
    places = {token: i * width + t for i, text in enumerate(texts) for t, token in enumerate(text)}
    rows = [text + [0] * (width - len(text)) for text in texts]
    of_tokens = [places[token] for token in range(len(places))]
    return Grid(torch.tensor(rows, device=device), torch.tensor(of_tokens, device=device))


def padded(groups: Sequence[Group], device: torch.device) -> Batch:
    """A text per row. Padding needs no mask: it stands on the right, where no token looks.

    The last tokens of texts predict nothing here, and are read for models that look at the length of a text.
    """
    texts = [(group.prompt_ids, response) for group in groups for response in group.responses]
    width = max(len(prompt) + len(response) for prompt, response in texts)
    rows = [prompt + response for prompt, response in texts]
    at = [i * width + len(p) - 1 + t for i, (p, response) in enumerate(texts) for t in range(len(response))]
    item = [i for i, (_, response) in enumerate(texts) for _ in response]
    targets = [token for _, response in texts for token in response]
    ids_IW = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
    return Batch(ids_IW, None, *(torch.tensor(values, device=device) for values in (at, item, targets)))


# --- attention that sees texts

ATTENTION = "spa_packed"
SeenAs = Callable[[Layout], AbstractContextManager[None]]
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
_seen = threading.local()  # the layout of the pass that a thread is in, and the model's own attention


@contextmanager
def packed_attention(model: PreTrainedModel) -> Iterator[SeenAs]:
    """Let the model's attention see texts: in a thread's `with` block, those of the layout given there."""
    config = model.config.get_text_config()
    own = config._attn_implementation
    config._attn_implementation = ATTENTION  # for which transformers makes no mask
    try:
        yield partial(_seen_as, ALL_ATTENTION_FUNCTIONS[own])
    finally:
        config._attn_implementation = own


@contextmanager
def _seen_as(own: Callable[..., Any], layout: Layout) -> Iterator[None]:
    _seen.layout, _seen.own = layout, own
    try:
        yield
    finally:
        del _seen.layout, _seen.own


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """The model's own attention over the texts; queries, keys and values come as (1, heads, T, D).

    Raises:
        TypeError: the architecture makes a mask of its own, which says more than where the texts are.
    """
    if attention_mask is not None:
        raise TypeError(f"{type(module).__name__} makes its own mask")
    settings.pop("position_ids", None)  # by which some kernels look for texts in a row themselves

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = _seen.own(module, query, key, value, None, **settings)[0]
        return output

    layout: Layout = _seen.layout
    states = (query, key, value)
    if isinstance(layout, Spans):
        return _over_spans(layout, attend, states), None
    return _over_grid(layout, attend, states), None


def _over_spans(layout: Spans, attend: Attend, states: tuple[torch.Tensor, ...]) -> torch.Tensor:
    outputs = []
    for prompt, first, *others in layout.groups:
        whole = slice(prompt.start, first.stop)
        outputs.append(attend(*(state_1HTD[:, :, whole] for state_1HTD in states)))
        for own in others:
            text = (torch.cat((state_1HTD[:, :, prompt], state_1HTD[:, :, own]), dim=2) for state_1HTD in states)
            outputs.append(attend(*text)[:, prompt.stop - prompt.start :])
    return torch.cat(outputs, dim=1)


def _over_grid(layout: Grid, attend: Attend, states: tuple[torch.Tensor, ...]) -> torch.Tensor:
    texts = (state_1HTD[0].transpose(0, 1)[layout.of_texts].transpose(1, 2) for state_1HTD in states)
    return attend(*texts).flatten(0, 1)[layout.of_tokens][None]


AttentionInterface.register(ATTENTION, _attention)
