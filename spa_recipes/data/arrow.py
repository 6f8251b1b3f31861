"""Canonical dataset rows as Arrow batches: many rows in little memory, and beyond a limit in a file without a name."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import pyarrow as pa

from spa_recipes.data.rows import PairRow

# Large types: the offsets of the small ones end at 2 GB per column, which `take` can exceed.
_TEXT = pa.large_string()
# `more` is what else a message has, such as calls of tools, as JSON.
_MESSAGES = pa.large_list(pa.struct([("role", _TEXT), ("content", _TEXT), ("more", _TEXT)]))
_NAMED = [("prompt_id", _TEXT), ("prompt", _MESSAGES)]
_NUMBERS = ("score_chosen", "score_rejected", "gold_chosen", "gold_rejected", "margin", "weight")

PAIRS = pa.schema(
    [
        *_NAMED,
        ("chosen", _MESSAGES),
        ("rejected", _MESSAGES),
        ("row", pa.int64()),
        *((name, pa.float64()) for name in _NUMBERS),
        ("id", _TEXT),
    ]
)
"""Columns of `PairRow`; what a row does not have is null."""
PROMPTS = pa.schema([*_NAMED, ("row", pa.int64())])
"""Columns of `PromptRow`."""
CONVERSATIONS = pa.schema([("messages", _MESSAGES), ("row", pa.int64())])
"""Columns of `ConversationRow`."""
CANDIDATES = pa.schema([*_NAMED, ("responses", pa.large_list(_TEXT)), ("label", pa.int64()), ("row", pa.int64())])
"""Columns of `CandidatesRow`."""
JUDGED = pa.schema([*_NAMED, ("answer", _TEXT), ("good", pa.bool_()), ("row", pa.int64())])
"""An answer and whether it is good, before those of one prompt become pairs."""

_ROWS_PER_BATCH = 1000
_BYTES_IN_MEMORY = 64 * 1024 * 1024
_ROWS_AT_ONCE = 20_000  # that `Rows.take` collects in one pass over all rows
_OPTIONAL = PairRow.__optional_keys__


class Rows:
    """Rows in the order in which they were added. Beyond 64 MiB they are in a file that ends with this object.

    Args:
        schema: their columns.
        folder: where that file is; None for the system's folder of temporary files.
    """

    def __init__(self, schema: pa.Schema, folder: Path | None = None) -> None:
        self.schema = schema
        self._count = 0
        where = None if folder is None else str(folder)
        file = tempfile.SpooledTemporaryFile(_BYTES_IN_MEMORY, dir=where)  # noqa: SIM115  # it closes with this object
        self._file = cast("IO[bytes]", file)
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        self._writer = pa.ipc.new_file(pa.PythonFile(self._file, "w"), schema, options=options)
        self._reader: pa.RecordBatchFileReader | None = None

    def __len__(self) -> int:
        return self._count

    def extend(self, rows: Iterable[Mapping[str, Any]]) -> Rows:
        """Add rows; only a batch of them is in memory as Python objects at a time. Afterwards they can be read."""
        rows = iter(rows)
        while some := list(islice(rows, _ROWS_PER_BATCH)):
            self._writer.write_batch(_batch_of(some, self.schema))
            self._count += len(some)
        self._writer.close()
        self._reader = pa.ipc.open_file(pa.PythonFile(self._file, "r"))
        return self

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Go through the rows, one batch in memory at a time."""
        assert self._reader is not None, "rows are read after all were added"
        for number in range(self._reader.num_record_batches):
            yield self._reader.get_batch(number)

    def column(self, name: str) -> pa.ChunkedArray:
        """One column of all rows."""
        kind = self.schema.field(name).type
        # A batch is one block of memory: without the copy, each column would hold all the others.
        return pa.chunked_array([pa.concat_arrays([batch[name].take(pa.array(range(len(batch))))]) for batch in
                                 self.batches()], type=kind)  # fmt: skip

    def take(self, rows: Sequence[int], names: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """Go through chosen rows in their given order, with all columns or some."""
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            yield from rows_of(self._collect(rows[start : start + _ROWS_AT_ONCE], names))

    def _collect(self, rows: Sequence[int], names: Sequence[str] | None) -> pa.Table:
        order = np.argsort(rows, kind="stable")
        wanted = np.asarray(rows, dtype=np.int64)[order]
        found, start = [], 0
        for batch in self.batches():
            first, last = np.searchsorted(wanted, [start, start + len(batch)])
            if first < last:
                chosen = batch if names is None else batch.select(list(names))
                found.append(chosen.take(pa.array(wanted[first:last] - start)))
            start += len(batch)
        schema = self.schema if names is None else pa.schema([self.schema.field(name) for name in names])
        return pa.Table.from_batches(found, schema=schema).combine_chunks().take(pa.array(np.argsort(order)))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self.batches():
            yield from rows_of(pa.Table.from_batches([batch]))


def table_of(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Collect rows in a table; only a batch of them is in memory as Python objects at a time."""
    rows = iter(rows)
    batches = []
    while some := list(islice(rows, _ROWS_PER_BATCH)):
        batches.append(_batch_of(some, schema))
    return pa.Table.from_batches(batches, schema=schema)


def take(table: pa.Table, rows: Sequence[int]) -> pa.Table:
    """`table.take(rows)`, which copies whole columns where these have several chunks; this copies only the rows."""
    order = np.argsort(rows)
    wanted = np.asarray(rows, dtype=np.int64)[order]
    found, start = [], 0
    for batch in table.to_batches():
        first, last = np.searchsorted(wanted, [start, start + len(batch)])
        if first < last:
            found.append(batch.take(pa.array(wanted[first:last] - start)))
        start += len(batch)
    return pa.Table.from_batches(found, schema=table.schema).combine_chunks().take(pa.array(np.argsort(order)))


def rows_of(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Go through the rows of a table; what is null and optional in `PairRow` is left out."""
    messages = [name for name in table.column_names if table.schema.field(name).type == _MESSAGES]
    optional = _OPTIONAL & set(table.column_names)
    for batch in table.to_batches(max_chunksize=_ROWS_PER_BATCH):
        for row in batch.to_pylist():
            for name in messages:
                row[name] = [_message_of(item) for item in row[name]]
            yield {name: value for name, value in row.items() if value is not None or name not in optional}


def _message_of(item: dict[str, Any]) -> dict[str, Any]:
    more = item.pop("more")
    return item if more is None else item | json.loads(more)


def _batch_of(rows: list[Mapping[str, Any]], schema: pa.Schema) -> pa.RecordBatch:
    columns = []
    for field in schema:
        if field.type == _MESSAGES:
            columns.append(_messages_array([row[field.name] for row in rows]))
        else:
            columns.append(pa.array([row.get(field.name) for row in rows], field.type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _messages_array(lists: list[list[dict[str, Any]]]) -> pa.Array:
    """Lists of messages column by column, which is several times as fast as from objects."""
    offsets = np.zeros(len(lists) + 1, dtype=np.int64)
    np.cumsum([len(messages) for messages in lists], out=offsets[1:])
    flat = [message for messages in lists for message in messages]
    more = [
        json.dumps({key: value for key, value in message.items() if key not in ("role", "content")})
        if len(message) > 2
        else None
        for message in flat
    ]
    items = pa.StructArray.from_arrays(
        [
            pa.array([message["role"] for message in flat], _TEXT),
            pa.array([message["content"] for message in flat], _TEXT),
            pa.array(more, _TEXT),
        ],
        fields=list(_MESSAGES.value_type),
    )
    return pa.LargeListArray.from_arrays(pa.array(offsets), items, type=_MESSAGES)
