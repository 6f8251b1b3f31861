"""Rows of a preference training, their lengths, and batches of them.

A row is a prompt with a chosen and a rejected response. For a loss that reads all answers to a prompt it has the others
in the columns `other_ids` and `ref_other_logps`, which are lists.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import torch
from torch.nn.functional import pad
from trl.trainer.dpo_trainer import DataCollatorForPreference

from spa_recipes.training.order import column_lengths

REFERENCE_COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")
OTHERS, REFERENCE_OF_OTHERS = "other_ids", "ref_other_logps"


@dataclass
class PairCollator:
    """TRL's batch (chosen sequences, then rejected ones) with the row of each pair.

    The other answers follow, row by row, and `others` counts them for each row.
    """

    pad_token_id: int

    def __post_init__(self) -> None:
        self._collate = DataCollatorForPreference(pad_token_id=self.pad_token_id)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Pad on the right, which `add_response_logps` relies on."""
        batch: dict[str, torch.Tensor] = self._collate(rows)
        batch["row"] = torch.tensor([row["row"] for row in rows])
        batch["others"] = torch.tensor([len(row.get(OTHERS, ())) for row in rows])
        others = [(row["prompt_ids"], answer) for row in rows for answer in row.get(OTHERS, ())]
        if others:
            self._append(batch, others)
        return batch

    def _append(self, batch: dict[str, torch.Tensor], others: list[tuple[list[int], list[int]]]) -> None:
        """Add further sequences below those of a batch."""
        longest = max(batch["input_ids"].shape[1], *(len(prompt) + len(answer) for prompt, answer in others))
        filled = {"input_ids": self.pad_token_id, "completion_mask": 0, "attention_mask": 0}
        for name, filler in filled.items():
            above_BT = batch[name]
            rows = [
                {
                    "input_ids": prompt + answer,
                    "completion_mask": [0] * len(prompt) + [1] * len(answer),
                    "attention_mask": [1] * (len(prompt) + len(answer)),
                }[name]
                for prompt, answer in others
            ]
            below_BT = above_BT.new_tensor([row + [filler] * (longest - len(row)) for row in rows])
            batch[name] = torch.cat([pad(above_BT, (0, longest - above_BT.shape[1]), value=filler), below_BT])


def rows_of_answers(others_B: torch.Tensor) -> torch.Tensor:
    """The place in the batch of the row that each of its answers belongs to, (A,)."""
    place_B = torch.arange(len(others_B), device=others_B.device)
    return torch.cat([place_B, place_B, place_B.repeat_interleave(others_B)])


def token_weights(
    known: Sequence[tuple[Sequence[float], Sequence[float]]], inputs: dict[str, torch.Tensor], *, like: torch.Tensor
) -> torch.Tensor:
    """The weight of each response token of a batch of pairs in its place, (2B, T - 1); 1 for rows that are not known.

    Args:
        known: by row, of the tokens of its chosen and of its rejected response.
        like: log-probs of the tokens in their places, of that shape.
    """
    scored_BT = inputs["completion_mask"][:, 1:].bool()
    rows = [(row, side) for side in (0, 1) for row in inputs["row"].tolist()]
    weights: list[float] = []
    for (row, side), count in zip(rows, scored_BT.sum(dim=1).tolist(), strict=True):
        of_row = known[row][side] if 0 <= row < len(known) else [1.0] * count
        if len(of_row) != count:
            raise ValueError(f"row {row} has {count} response tokens and {len(of_row)} weights")
        weights += of_row
    return like.new_zeros(like.shape).masked_scatter(scored_BT, like.new_tensor(weights))


def references(rows: datasets.Dataset) -> list[list[float]]:
    """The reference's log-probs of each row: of its chosen, its rejected and its other answers."""
    chosen, rejected = (rows[name] for name in REFERENCE_COLUMNS)
    others = rows[REFERENCE_OF_OTHERS] if REFERENCE_OF_OTHERS in rows.column_names else [[]] * len(rows)
    return [[w, r, *more] for w, r, more in zip(chosen, rejected, others, strict=True)]


def pair_lengths(rows: datasets.Dataset, of_all: Callable[[list[int]], int] = max) -> list[int]:
    """Tokens of the longest sequence of each row, or with `min` of the shortest one."""
    prompt, chosen, rejected = (column_lengths(rows, name) for name in ("prompt_ids", "chosen_ids", "rejected_ids"))
    answers = zip(prompt, chosen, rejected, _other_lengths(rows), strict=True)
    return [p + of_all([c, r, *more]) for p, c, r, more in answers]


def longest_text(rows: datasets.Dataset) -> list[int]:
    """The longest sequence of all rows."""
    lengths = pair_lengths(rows)
    row: dict[str, Any] = rows[lengths.index(max(lengths))]
    longest: list[int] = max([row["chosen_ids"], row["rejected_ids"], *row.get(OTHERS, ())], key=len)
    return list(row["prompt_ids"] + longest)


def pair_tokens(rows: datasets.Dataset) -> int:
    """Tokens of all sequences of all rows, each of which begins with the prompt."""
    prompt, chosen, rejected = (column_lengths(rows, name) for name in ("prompt_ids", "chosen_ids", "rejected_ids"))
    answers = zip(prompt, chosen, rejected, _other_lengths(rows), strict=True)
    return sum((2 + len(more)) * p + c + r + sum(more) for p, c, r, more in answers)


def _other_lengths(rows: datasets.Dataset) -> list[list[int]]:
    """Tokens of each other answer of each row."""
    if OTHERS not in rows.column_names:
        return [[]] * len(rows)
    return [[len(answer) for answer in answers] for answers in rows[OTHERS]]
