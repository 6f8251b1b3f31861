"""Batches for scoring: rows of prompts with their responses, padded, and what a model has to look at in them.

Responses to one prompt can stand in one row behind it. Then the prompt is computed once: every response sees it and
itself, its positions go on from the prompt's, and no response sees another.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch


class Scored(NamedTuple):
    """A response to score.

    Attributes:
        prompt_ids: token ids of the rendered prompt, at least one.
        response_ids: token ids of the response, at least one; its end-of-turn token counts when it is among them.
    """

    prompt_ids: list[int]
    response_ids: list[int]


class Row(NamedTuple):
    """One row of a batch: a prompt and responses to it, which stand at `items` among all."""

    prompt_ids: list[int]
    responses: list[list[int]]
    items: list[int]

    @property
    def width(self) -> int:
        """Tokens that a model reads: the last one of a response predicts nothing here."""
        return len(self.prompt_ids) + sum(len(response) - 1 for response in self.responses)


class Batch(NamedTuple):
    """Some rows, padded on the right.

    Attributes:
        input_ids: (B, T) prompts and responses without their last token.
        attention: None where rows hold one response each: padding stands on the right, where no token looks.
            Otherwise (B, 1, T, T), zero where a token may look and the smallest number elsewhere.
        positions: (B, T) places of the tokens in their own text; None where rows hold one response each.
        at: (N,) places of the positions that predict response tokens, in the flattened B * T.
        item: (N,) item of each of them, counted within the batch.
        targets: (N,) the response tokens themselves.
    """

    input_ids: torch.Tensor
    attention: torch.Tensor | None
    positions: torch.Tensor | None
    at: torch.Tensor
    item: torch.Tensor
    targets: torch.Tensor


Pays = Callable[[Sequence[int], int], bool]
"""Whether to put responses of these lengths into one row behind a prompt of that length."""


def rows_of(items: Sequence[Scored], pays: Pays) -> list[Row]:
    """The items as rows; those with equal prompts together, as long as that pays."""
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for i, item in enumerate(items):
        by_prompt.setdefault(tuple(item.prompt_ids), []).append(i)
    rows = []
    for members in by_prompt.values():
        row: list[int] = []
        for i in members:
            lengths = [len(items[j].response_ids) - 1 for j in (*row, i)]
            if row and not pays(lengths, len(items[i].prompt_ids)):
                rows.append(_row(items, row))
                row = []
            row.append(i)
        rows.append(_row(items, row))
    return rows


def _row(items: Sequence[Scored], members: list[int]) -> Row:
    return Row(items[members[0]].prompt_ids, [items[i].response_ids for i in members], members)


def batches(rows: Sequence[Row], tokens_per_batch: int) -> Iterator[list[Row]]:
    """The rows of each pass, the widest first: memory runs out at once or not at all."""
    ordered = sorted(rows, key=lambda row: -row.width)
    begin = 0
    while begin < len(ordered):
        size = max(1, tokens_per_batch // ordered[begin].width)
        yield ordered[begin : begin + size]
        begin += size


def collate(rows: Sequence[Row], device: torch.device, dtype: torch.dtype) -> Batch:
    """Pad rows and say who sees whom.

    Args:
        dtype: of the attention mask, where one is needed.
    """
    width = max(row.width for row in rows)
    input_ids, at, item, targets = [], [], [], []  # type: list[list[int]], list[int], list[int], list[int]
    number = 0
    for i, row in enumerate(rows):
        ids = list(row.prompt_ids)
        for response in row.responses:
            # The prompt's last token predicts the response's first one, and each token of it the next.
            at.append(i * width + len(row.prompt_ids) - 1)
            at.extend(range(i * width + len(ids), i * width + len(ids) + len(response) - 1))
            item.extend([number] * len(response))
            targets.extend(response)
            ids.extend(response[:-1])
            number += 1
        input_ids.append(ids + [0] * (width - len(ids)))
    several = any(len(row.responses) > 1 for row in rows)
    return Batch(
        torch.tensor(input_ids, device=device),
        _who_sees_whom(rows, width, device, dtype) if several else None,
        _positions(rows, width, device) if several else None,
        *(torch.tensor(values, device=device) for values in (at, item, targets)),
    )


def _positions(rows: Sequence[Row], width: int, device: torch.device) -> torch.Tensor:
    positions = []
    for row in rows:
        start = len(row.prompt_ids)
        own = [*range(start), *(start + t for response in row.responses for t in range(len(response) - 1))]
        positions.append(own + [0] * (width - len(own)))
    return torch.tensor(positions, device=device)


def _who_sees_whom(rows: Sequence[Row], width: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """(B, 1, T, T): tokens see what is before them in their own response and its prompt; padding sees itself only."""
    parts = []
    for row in rows:
        own = [0] * len(row.prompt_ids)
        for number, response in enumerate(row.responses, start=1):
            own += [number] * (len(response) - 1)
        parts.append(own + [-1] * (width - len(own)))
    part_BT = torch.tensor(parts, device=device)
    looks_BT1, seen_B1T = part_BT[:, :, None], part_BT[:, None, :]
    before_TT = torch.ones(width, width, dtype=torch.bool, device=device).tril()
    allowed_BTT = before_TT & (looks_BT1 >= 0) & ((seen_B1T == 0) | (seen_B1T == looks_BT1))
    # A row of nothing but forbidden places would be NaN.
    allowed_BTT |= torch.eye(width, dtype=torch.bool, device=device)
    mask_BTT = torch.zeros(allowed_BTT.shape, dtype=dtype, device=device)
    return mask_BTT.masked_fill_(~allowed_BTT, torch.finfo(dtype).min)[:, None]


def cheaper_together(config: Any) -> Pays:
    """`Pays` for a decoder of this (text) configuration: the matrix products saved against the attention added.

    A token costs about 12 D^2 multiplications in each layer besides attention, a pair of tokens that attention
    compares 2 D: all pairs of a row where it is told who sees whom, half of them in a row of one text.
    """
    hidden: int = config.hidden_size

    def pays(lengths: Sequence[int], prompt: int) -> bool:
        apart = sum((prompt + length) ** 2 for length in lengths)
        together = (prompt + sum(lengths)) ** 2
        return 12 * hidden * prompt * (len(lengths) - 1) > 2 * together - apart

    return pays


def never(lengths: Sequence[int], prompt: int) -> bool:
    """`Pays` for models that cannot have several responses in one row."""
    return False
