"""Rows of a training and the order in which they are seen.

The order depends on the seed, the epoch and the global batch size only: a global batch holds the same rows whatever
number of processes and micro-batches share it. If the last batch of an epoch does not split evenly, padding rows fill
it up; they do not count.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import torch

PADDING_ROW = -1
"""Value of "row" in a padding row."""

_BATCHES_PER_BUCKET = 50


class TokenRows(torch.utils.data.Dataset[dict[str, Any]]):
    """Tokenised rows; index n of n rows is the padding row, a copy of the shortest one.

    Each row gets a column "row": its index, or `PADDING_ROW`.
    """

    def __init__(self, rows: datasets.Dataset, lengths: Sequence[int]) -> None:
        self._rows = rows
        self._shortest = min(range(len(lengths)), key=lengths.__getitem__)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """Read a batch at once: an Arrow table is slow row by row."""
        count = len(self._rows)
        columns = self._rows[[self._shortest if index == count else index for index in indices]]
        return [
            {
                **{name: values[place] for name, values in columns.items()},
                "row": PADDING_ROW if index == count else index,
            }
            for place, index in enumerate(indices)
        ]


class EpochOrder(torch.utils.data.Sampler[int]):
    """Indices of one epoch, global batch after global batch.

    Args:
        lengths: tokens of each row.
        global_batch_size: rows per optimizer step.
        parallel_rows: rows that all processes handle at once; padding rows complete the last of them.
        seed: seed of the shuffle.
        group_by_length: fill each global batch with rows of similar length (batches come in random order). Otherwise
            its rows are random, and only sorted inside the batch, so that micro-batches hold little padding.
        epoch: gives the current epoch when an iteration starts, also in a training that resumes.
        replayed: the last so many rows are a group of their own, spread evenly over the batches (not with
            `group_by_length`).
    """

    def __init__(
        self,
        lengths: Sequence[int],
        global_batch_size: int,
        parallel_rows: int,
        seed: int,
        *,
        group_by_length: bool,
        epoch: Callable[[], int],
        replayed: int = 0,
    ) -> None:
        self._lengths, self._size, self._parallel = lengths, global_batch_size, parallel_rows
        self._seed, self._group, self._epoch, self._replayed = seed, group_by_length, epoch, replayed

    def __len__(self) -> int:
        return len(self._lengths) + -len(self._lengths) % self._parallel

    def __iter__(self) -> Iterator[int]:
        digest = hashlib.sha256(f"{self._seed}:{self._epoch()}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        count = len(self._lengths)
        order: list[int] = torch.randperm(count, generator=generator).tolist()
        if self._replayed:
            order = _spread(order, count - self._replayed)
        if self._group:
            order = self._buckets(order)
        batches = [order[start : start + self._size] for start in range(0, count, self._size)]
        if self._group:
            full = count // self._size
            shuffled = torch.randperm(full, generator=generator).tolist()
            batches = [batches[place] for place in shuffled] + batches[full:]
        for batch in batches:
            yield from sorted(batch, key=self._lengths.__getitem__, reverse=True)
        yield from [count] * (len(self) - count)

    def _buckets(self, order: list[int]) -> list[int]:
        """Sort stretches of many batches by length."""
        size = self._size * _BATCHES_PER_BUCKET
        return [
            index
            for start in range(0, len(order), size)
            for index in sorted(order[start : start + size], key=self._lengths.__getitem__, reverse=True)
        ]


def _spread(order: Sequence[int], boundary: int) -> list[int]:
    """Merge the rows below and from `boundary` on, each in its order, so that every stretch holds its share of both."""
    groups = [[row for row in order if row < boundary], [row for row in order if row >= boundary]]
    placed = [((k + 0.5) / len(group), row) for group in groups for k, row in enumerate(group)]
    return [row for _, row in sorted(placed)]


def as_dataset(rows: datasets.Dataset | Sequence[Mapping[str, Any]]) -> datasets.Dataset:
    """The rows as a Dataset."""
    if isinstance(rows, datasets.Dataset):
        return rows.with_format(None)
    return datasets.Dataset.from_list([dict(row) for row in rows])


def replayed_rows(judged: int, share: float, added: int = 0) -> int:
    """How many labelled pairs come to so many judged ones: a share of all, and as many as were added at least."""
    return max(added, round(judged * share / (1.0 - share)))


def steps_per_epoch(row_count: int, global_batch_size: int) -> int:
    """Optimizer steps of one epoch; the last one may hold fewer rows."""
    return -(-row_count // global_batch_size)


def rows_in_step(step: int, row_count: int, global_batch_size: int) -> int:
    """Number of rows, without padding, in a 0-based optimizer step."""
    in_epoch = step % steps_per_epoch(row_count, global_batch_size)
    return min(global_batch_size, row_count - in_epoch * global_batch_size)


def column_lengths(rows: datasets.Dataset, name: str) -> list[int]:
    """Length of each list of a column."""
    lengths: list[int] = pc.list_value_length(pa.chunked_array(rows.with_format("arrow")[:][name])).to_pylist()
    return lengths
