"""Batches for scoring: which tokens a model reads in one pass, and which of its outputs predict which response token.

Everything in a transformer but attention treats tokens one by one. So all tokens of a pass stand in one row without
padding, a prompt once for all its responses; attention alone gets them text by text, each response behind its prompt.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
        return len(self.prompt_ids) + max(len(response) - 1 for response in self.responses)


class Layout(NamedTuple):
    """How the tokens of a pass lie in the I texts that attention sees, each of W places, padded on the right.

    Attributes:
        of_texts: (I, W) the token at each place; any token at padding, which stands where no other one looks.
        of_tokens: (T,) a place of each token, in the flattened I * W.
    """

    of_texts: torch.Tensor
    of_tokens: torch.Tensor


class Batch(NamedTuple):
    """What a model reads in one pass.

    Attributes:
        input_ids: (1, T) all tokens; or without `layout` (I, W), a text per row, padded on the right.
        positions: (1, T) places of the tokens in their texts; None without `layout`.
        layout: what attention sees; None where it sees the rows as they are.
        at: (N,) places of the positions that predict response tokens, in the flattened `input_ids`.
        item: (N,) item of each of them, counted within the batch.
        targets: (N,) the response tokens themselves.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor | None
    layout: Layout | None
    at: torch.Tensor
    item: torch.Tensor
    targets: torch.Tensor


def groups_of(items: Sequence[Scored], most: int) -> list[Group]:
    """The items, those with equal prompts together as long as they are not more than `most` tokens."""
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


def batches(groups: Sequence[Group], tokens_per_batch: int) -> Iterator[list[Group]]:
    """The groups of each pass, the longest texts first: memory runs out at once or not at all.

    What counts are the places that attention sees, padding included.
    """
    batch: list[Group] = []
    texts = 0
    for group in sorted(groups, key=lambda group: -group.longest):
        texts += len(group.items)
        if batch and texts * batch[0].longest > tokens_per_batch:
            yield batch
            batch, texts = [], len(group.items)
        batch.append(group)
    if batch:
        yield batch


def packed(groups: Sequence[Group], device: torch.device) -> Batch:
    """All tokens in one row, prompts once."""
    ids, positions, places, texts = [], [], [], []  # type: list[int], list[int], list[int], list[list[int]]
    at, item, targets = [], [], []  # type: list[int], list[int], list[int]
    width = max(group.longest for group in groups)
    for group in groups:
        prompt = list(range(len(ids), len(ids) + len(group.prompt_ids)))
        ids += group.prompt_ids
        positions += range(len(prompt))
        places += range(len(texts) * width, len(texts) * width + len(prompt))
        for response in group.responses:
            own = list(range(len(ids), len(ids) + len(response) - 1))
            ids += response[:-1]
            positions += range(len(prompt), len(prompt) + len(own))
            start = len(texts) * width + len(prompt)
            places += range(start, start + len(own))
            # The prompt's last token predicts the response's first one, and each token of it the next.
            at += [prompt[-1], *own]
            item += [len(texts)] * len(response)
            targets += response
            texts.append(prompt + own)
    padded = [text + [0] * (width - len(text)) for text in texts]
    layout = Layout(torch.tensor(padded, device=device), torch.tensor(places, device=device))
    (ids_1T, positions_1T) = (torch.tensor([values], device=device) for values in (ids, positions))
    return Batch(ids_1T, positions_1T, layout, *(torch.tensor(values, device=device) for values in (at, item, targets)))


def padded(groups: Sequence[Group], device: torch.device) -> Batch:
    """A text per row. Padding needs no mask: it stands on the right, where no token looks."""
    texts = [(group.prompt_ids, response) for group in groups for response in group.responses]
    width = max(len(prompt) + len(response) - 1 for prompt, response in texts)
    rows = [prompt + response[:-1] for prompt, response in texts]
    at = [i * width + len(p) - 1 + t for i, (p, response) in enumerate(texts) for t in range(len(response))]
    item = [i for i, (_, response) in enumerate(texts) for _ in response]
    targets = [token for _, response in texts for token in response]
    ids_IW = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
    return Batch(ids_IW, None, None, *(torch.tensor(values, device=device) for values in (at, item, targets)))


# --- attention that sees texts

ATTENTION = "spa_packed"
Attention = Callable[..., tuple[torch.Tensor, Any]]
_current: list[tuple[Layout, Attention]] = []


@contextmanager
def seen_as(layout: Layout | None, model: PreTrainedModel) -> Iterator[None]:
    """Let the model's own attention see the tokens of a pass as `layout` says."""
    if layout is None:
        yield
        return
    config = model.config.get_text_config()
    own = config._attn_implementation
    _current.append((layout, ALL_ATTENTION_FUNCTIONS[own]))
    config._attn_implementation = ATTENTION  # for which transformers makes no mask
    try:
        yield
    finally:
        config._attn_implementation = own
        _current.pop()


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """The model's own attention over the texts; queries, keys and values come as (1, heads, T, D)."""
    layout, own = _current[-1]
    settings.pop("position_ids", None)  # by which some kernels look for texts in a row themselves
    texts = (states[0].transpose(0, 1)[layout.of_texts].transpose(1, 2) for states in (query, key, value))
    output_IWHD, _ = own(module, *texts, None, **settings)
    return output_IWHD.flatten(0, 1)[layout.of_tokens][None], None


AttentionInterface.register(ATTENTION, _attention)
