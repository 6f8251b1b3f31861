"""What the trainers of this package have in common: tokenised rows, their order, losses of a step, and no chatter."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Sampler

from spa_recipes.errors import StageError
from spa_recipes.models.dtype import in_float64
from spa_recipes.training.order import PADDING_ROW, EpochOrder, TokenRows, rows_in_step, steps_per_epoch
from spa_recipes.training.sharding import settle


class TrainsTokenRows:
    """A mixin that stands before a trainer of TRL and replaces how it prepares, orders and counts its rows.

    The trainer sets these before TRL's own `__init__` runs:

    Attributes:
        _lengths: tokens of each row.
        _global_batch_size: rows per optimizer step over all processes.
        _group_by_length, _replayed: as in `EpochOrder`.

    Attributes that may be set until the training begins:
        reads_alone: the texts of a batch are read one by one, without padding.
    """

    args: Any
    state: Any
    accelerator: Any
    _lengths: list[int]
    _global_batch_size: int
    _group_by_length = False
    _replayed = 0
    reads_alone = False

    @property
    def steps_in_epoch(self) -> int:
        """Optimizer steps of a pass over all rows."""
        return steps_per_epoch(len(self._lengths), self._global_batch_size)

    def create_accelerator_and_postprocess(self) -> None:
        """Settle how the weights are shared out, before a model is."""
        super().create_accelerator_and_postprocess()  # type: ignore[misc]
        settle(self.accelerator, self.args)

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> TokenRows:
        """Rows are tokenised already."""
        return TokenRows(dataset, self._lengths)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return EpochOrder(
            self._lengths,
            self._global_batch_size,
            self.args.per_device_train_batch_size * self.args.world_size,
            self.args.seed,
            group_by_length=self._group_by_length,
            epoch=lambda: self.state.global_step // self.steps_in_epoch,
            replayed=self._replayed,
        )

    def _share_of_step(self, loss_B: torch.Tensor, row_B: torch.Tensor) -> torch.Tensor:
        """A micro-batch's share of the mean loss over the rows of the step; padding rows do not count."""
        counts_B = (row_B != PADDING_ROW).to(loss_B.dtype)
        rows = rows_in_step(self.state.global_step, len(self._lengths), self._global_batch_size)
        # Gradients are averaged over the processes: each contributes its sum, times their number.
        scale: float = self.accelerator.num_processes / rows
        return (loss_B * counts_B).sum() * scale

    def _pairs_of_step(self, micro_batches: Sequence[Sequence[torch.Tensor]]) -> torch.Tensor:
        """Figures of a step's pairs over all processes, (number of figures, N) in float64, ordered by row.

        Args:
            micro_batches: for each of this process's micro-batches its figures, (B,) each; the first one is the row.
        """
        local = torch.stack(
            [torch.cat([in_float64(part) for part in column]) for column in zip(*micro_batches, strict=True)]
        )
        table = self.accelerator.gather(local.T.contiguous()).cpu()
        table = table[table[:, 0] != PADDING_ROW]
        ordered: torch.Tensor = table[table[:, 0].argsort()].T
        return ordered

    def _stop_unless_finite(self, losses: torch.Tensor, rows: torch.Tensor, grad_norm: Any) -> None:
        """Stop before the optimizer step where a loss or the gradient is NaN or infinite.

        Args:
            losses: of the step, over all processes.
            rows: the rows of the step, over all processes.
            grad_norm: None where the trainer does not know it.

        Raises:
            StageError: names step and rows.
        """
        finite_loss = bool(losses.isfinite().all())
        # With float16 an infinite gradient is normal: the scaler skips the step.
        if finite_loss and (grad_norm is None or self.args.fp16 or math.isfinite(grad_norm)):
            return
        named = ", ".join(str(row) for row in sorted(set(rows.long().tolist()) - {PADDING_ROW}))
        raise StageError(
            f"the {'gradient' if finite_loss else 'loss'} of optimizer step {self.state.global_step + 1} is not finite",
            where=f"rows {named}",
            fix="lower learning_rate or look at these rows; the last checkpoint is from before this step",
        )

    def _send_telemetry(self) -> None:
        """Send nothing."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write none."""

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: it costs a walk over all parameters per micro-batch."""
        return 0
