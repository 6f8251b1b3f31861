"""Supervised fine-tuning on TRL's SFTTrainer, with rows that are tokenised already."""

from dataclasses import dataclass
from typing import Any

import datasets
import torch
from trl import SFTConfig, SFTTrainer

from spa_recipes.training.order import PADDING_ROW, column_lengths
from spa_recipes.training.response_logps import IGNORED, add_response_logps
from spa_recipes.training.token_rows import TrainsTokenRows


class SpaSftTrainer(TrainsTokenRows, SFTTrainer):  # type: ignore[misc]
    """Next-token loss on the response tokens of tokenised rows: the mean over all of them in an optimizer step.

    TRL's own loss is the same number, but TRL also computes entropy and accuracy of every token, which costs more than
    training a small model.

    Args:
        rows: columns input_ids and response_mask (1 where the loss is taken).
        global_batch_size: rows per optimizer step over all processes.
    """

    def __init__(
        self, model: Any, args: SFTConfig, rows: datasets.Dataset, *, global_batch_size: int, **kwargs: Any
    ) -> None:
        self._global_batch_size, self._group_by_length = global_batch_size, True
        self._lengths = column_lengths(rows, "input_ids")
        self._seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        add_response_logps(model)
        super().__init__(model=model, args=args, train_dataset=rows, **kwargs)
        self.model_accepts_loss_kwargs = True  # transformers counts the labels of a step only then

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """The micro-batch's share of the mean over the response tokens of the step."""
        logps_B: torch.Tensor = model(
            input_ids=inputs["input_ids"], response_labels=inputs["labels"], alone=self.reads_alone
        )
        # Gradients are averaged over the processes: each contributes its sum, times their number.
        loss: torch.Tensor = -logps_B.sum() * (self.accelerator.num_processes / num_items_in_batch)
        self._seen.append((inputs["row"], loss.detach()))
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Before the optimizer step: stop where the loss or the gradient is not finite."""
        norm = super()._get_grad_norm(model, grad_norm)
        seen, self._seen = self._seen, []
        losses = self.accelerator.gather(torch.stack([loss for _, loss in seen]))
        rows = self.accelerator.gather(torch.cat([rows for rows, _ in seen]))
        self._stop_unless_finite(losses, rows, norm)
        return norm


@dataclass
class SftCollator:
    """Pads on the right (`add_response_logps` relies on it); labels are the response tokens."""

    pad_token_id: int

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """A padding row has no labels, so it counts nowhere."""
        width = max(len(row["input_ids"]) for row in rows)
        ids = [row["input_ids"] + [self.pad_token_id] * (width - len(row["input_ids"])) for row in rows]
        scored = [
            row["response_mask"] + [0] * (width - len(row["input_ids"])) if row["row"] != PADDING_ROW else [0] * width
            for row in rows
        ]
        input_ids = torch.tensor(ids)
        return {
            "input_ids": input_ids,
            "labels": input_ids.masked_fill(torch.tensor(scored) == 0, IGNORED),
            "row": torch.tensor([row["row"] for row in rows]),
        }
