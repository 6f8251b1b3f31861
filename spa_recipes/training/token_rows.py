"""What the trainers of this package do alike: rows that are tokenised, an order of their own, and no chatter."""

from typing import Any

from torch.utils.data import Sampler

from spa_recipes.training.order import EpochOrder, TokenRows, steps_per_epoch


class TrainsTokenRows:
    """Mixed into a trainer of TRL, before it: replaces how it prepares, orders and counts its rows.

    The trainer sets these before TRL's own `__init__` runs:

    Attributes:
        _lengths: tokens of each row.
        _global_batch_size: rows per optimizer step over all processes.
        _group_by_length, _replayed: as in `EpochOrder`.
    """

    args: Any
    state: Any
    _lengths: list[int]
    _global_batch_size: int
    _group_by_length = False
    _replayed = 0

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
            epoch=lambda: self.state.global_step // steps_per_epoch(len(self._lengths), self._global_batch_size),
            replayed=self._replayed,
        )

    def _send_telemetry(self) -> None:
        """Nobody is told."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Checkpoints have none."""

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: it costs a walk over all parameters per micro-batch."""
        return 0
