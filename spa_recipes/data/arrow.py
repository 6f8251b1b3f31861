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
from numpy.typing import NDArray

from spa_recipes.data.rows import PairRow

# Large types: the offsets of the small ones end at 2 GB per column, which `take` can exceed.
TEXT = pa.large_string()
# `more` is what else a message has, such as calls of tools, as JSON.
MESSAGES = pa.large_list(pa.struct([("role", TEXT), ("content", TEXT), ("more", TEXT)]))
_NAMED = [("prompt_id", TEXT), ("prompt", MESSAGES)]
_NUMBERS = ("score_chosen", "score_rejected", "gold_chosen", "gold_rejected", "margin", "weight")

PAIRS = pa.schema(
    [
        *_NAMED,
        ("chosen", MESSAGES),
        ("rejected", MESSAGES),
        ("row", pa.int64()),
        *((name, pa.float64()) for name in _NUMBERS),
        ("id", TEXT),
    ]
)
"""Columns of `PairRow`; what a row does not have is null."""
PROMPTS = pa.schema([*_NAMED, ("row", pa.int64())])
"""Columns of `PromptRow`."""
CONVERSATIONS = pa.schema([("messages", MESSAGES), ("row", pa.int64())])
"""Columns of `ConversationRow`."""
CANDIDATES = pa.schema([*_NAMED, ("responses", pa.large_list(TEXT)), ("label", pa.int64()), ("row", pa.int64())])
"""Columns of `CandidatesRow`."""
JUDGED = pa.schema([*_NAMED, ("answer", TEXT), ("good", pa.bool_()), ("row", pa.int64())])
"""An answer and whether it is good, before those of one prompt become pairs."""

ROWS_PER_BATCH = 1000
_BYTES_IN_MEMORY = 64 * 1024 * 1024
_BYTES_AT_ONCE = 32 * 1024 * 1024  # of rows that `Rows.take` collects in one pass over all rows
_OPTIONAL = PairRow.__optional_keys__


class Rows:
    """Rows in the order in which they were added. Beyond 64 MiB they are in a file that ends with this object.

    Args:
        schema: their columns.
        folder: where that file is; None for the system's folder of temporary files.
    """

    def __init__(self, schema: pa.Schema, folder: Path | None = None) -> None:
        self.schema = schema
        self._starts = [0]  # of each batch, and the number of all rows
        where = None if folder is None else str(folder)
        file = tempfile.SpooledTemporaryFile(_BYTES_IN_MEMORY, dir=where)  # noqa: SIM115  # it closes with this object
        self._file = cast("IO[bytes]", file)
        self._writer = pa.ipc.new_file(pa.PythonFile(self._file, "w"), schema)
        self._bytes: int | None = None  # once all rows were added

    def __len__(self) -> int:
        return self._starts[-1]

    def extend(self, rows: Iterable[Mapping[str, Any]]) -> Rows:
        """Add rows; only a batch of them is in memory as Python objects at a time. Afterwards they can be read."""
        return self.extend_batches(batches_of(rows, self.schema))

    def extend_batches(self, batches: Iterable[pa.RecordBatch]) -> Rows:
        """Add batches of rows. Afterwards they can be read."""
        for batch in batches:
            self._writer.write_batch(batch)
            self._starts.append(len(self) + len(batch))
        self._writer.close()
        self._bytes = self._file.tell()
        return self

    def batches(self, names: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Go through all columns of the rows or some, one batch in memory at a time."""
        reader = self._reader(names)
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)

    def column(self, name: str) -> pa.ChunkedArray:
        """One column of all rows."""
        # A batch is one block of memory: without the copy, a column would hold all the others.
        copies = [batch.column(0).take(pa.array(range(len(batch)))) for batch in self.batches([name])]
        return pa.chunked_array(copies, self.schema.field(name).type)

    def take(self, rows: Sequence[int], names: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """Go through chosen rows in their given order, with all columns or some."""
        at_once = max(ROWS_PER_BATCH, _BYTES_AT_ONCE * len(self) // (self._bytes or 1))
        for start in range(0, len(rows), at_once):
            order = np.argsort(rows[start : start + at_once], kind="stable")
            table = pa.Table.from_batches(self._chosen(np.asarray(rows[start : start + at_once])[order], names))
            table, places = table.combine_chunks(), np.argsort(order)
            for piece in range(0, len(places), ROWS_PER_BATCH):
                yield from rows_of(table.take(pa.array(places[piece : piece + ROWS_PER_BATCH])))

    def _chosen(self, rows: NDArray[np.int64], names: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Go through chosen rows, which are in ascending order, by the batches that have some."""
        reader = self._reader(names)
        places = np.searchsorted(rows, self._starts)
        for number, start in enumerate(self._starts[:-1]):
            inside = rows[places[number] : places[number + 1]]
            if len(inside):
                yield reader.get_batch(number).take(pa.array(inside - start))

    def _reader(self, names: Sequence[str] | None) -> pa.RecordBatchFileReader:
        assert self._bytes is not None, "rows are read after all were added"
        fields = None if names is None else sorted(self.schema.get_field_index(name) for name in names)
        options = pa.ipc.IpcReadOptions(included_fields=fields)
        return pa.ipc.open_file(pa.PythonFile(self._file, "r"), options=options)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self.batches():
            yield from rows_of(pa.Table.from_batches([batch]))


def table_of(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Collect rows in a table; only a batch of them is in memory as Python objects at a time."""
    return pa.Table.from_batches(batches_of(rows, schema), schema=schema)


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
    for batch in table.to_batches(max_chunksize=ROWS_PER_BATCH):
        names, columns, some_lack = [], [], False
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            if name in _OPTIONAL and column.null_count == len(batch):
                continue
            some_lack |= name in _OPTIONAL and column.null_count > 0
            names.append(name)
            columns.append(_messages_of(column) if column.type == MESSAGES else column.to_pylist())
        for values in zip(*columns, strict=True):
            row = dict(zip(names, values, strict=True))
            if some_lack:
                row = {name: value for name, value in row.items() if value is not None or name not in _OPTIONAL}
            yield row


def _messages_of(column: pa.Array) -> Iterator[list[dict[str, Any]]]:
    """The messages of each row."""
    parts = [part.to_pylist() for part in column.flatten().flatten()]
    items = map(_message_of, *parts)
    for length in column.value_lengths().to_pylist():
        yield list(islice(items, length))


def _message_of(role: str, content: str, more: str | None) -> dict[str, Any]:
    message: dict[str, Any] = {"role": role, "content": content}
    return message if more is None else message | json.loads(more)


def batches_of(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Rows as batches."""
    rows = iter(rows)
    while some := list(islice(rows, ROWS_PER_BATCH)):
        yield batch_of(some, schema)


def batch_of(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.RecordBatch:
    """Some rows as one batch."""
    columns = []
    for field in schema:
        if field.type == MESSAGES:
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
            pa.array([message["role"] for message in flat], TEXT),
            pa.array([message["content"] for message in flat], TEXT),
            pa.array(more, TEXT),
        ],
        fields=list(MESSAGES.value_type),
    )
    return pa.LargeListArray.from_arrays(pa.array(offsets), items, type=MESSAGES)


def messages_alike(roles: Sequence[str], texts: Sequence[pa.Array]) -> pa.Array:
    """Lists of messages with the same roles in each row; `texts` are those of the first, the second ... message."""
    flat = texts_alike(texts)
    items = pa.StructArray.from_arrays(
        [pa.array(list(roles) * len(flat), TEXT), flat.values, pa.nulls(len(flat.values), TEXT)],
        fields=list(MESSAGES.value_type),
    )
    return pa.LargeListArray.from_arrays(flat.offsets, items, type=MESSAGES)


def texts_alike(texts: Sequence[pa.Array]) -> pa.Array:
    """Lists of texts with the same number in each row; `texts` are the first, the second ... of each."""
    rows, number = len(texts[0]), len(texts)
    in_turn = np.arange(rows * number).reshape(number, rows).T.ravel()
    values = texts[0] if number == 1 else pa.concat_arrays(texts).take(pa.array(in_turn))
    return pa.LargeListArray.from_arrays(pa.array(np.arange(rows + 1) * number), values)
