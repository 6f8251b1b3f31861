"""Canonical dataset rows as Arrow tables, so that a stage can hold, select and write many rows in little memory."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from spa_recipes.data.rows import PairRow

# Large types: the offsets of the small ones end at 2 GB per column, which `take` can exceed.
_TEXT = pa.large_string()
_MESSAGES = pa.large_list(pa.struct([("role", _TEXT), ("content", _TEXT)]))
_NAMED = [("prompt_id", _TEXT), ("prompt", _MESSAGES)]
_SCORES = ("score_chosen", "score_rejected", "gold_chosen", "gold_rejected")

PAIRS = pa.schema(
    [
        *_NAMED,
        ("chosen", _MESSAGES),
        ("rejected", _MESSAGES),
        ("row", pa.int64()),
        *((name, pa.float64()) for name in _SCORES),
    ]
)
"""Columns of `PairRow`; a score that a row does not have is null."""
PROMPTS = pa.schema([*_NAMED, ("row", pa.int64())])
"""Columns of `PromptRow`."""
CONVERSATIONS = pa.schema([("messages", _MESSAGES), ("row", pa.int64())])
"""Columns of `ConversationRow`."""
CANDIDATES = pa.schema([*_NAMED, ("responses", pa.large_list(_TEXT)), ("label", pa.int64()), ("row", pa.int64())])
"""Columns of `CandidatesRow`."""

_ROWS_PER_BATCH = 1000


def table_of(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Collect rows in a table; only a batch of them is in memory as Python objects at a time."""
    rows = iter(rows)
    batches = []
    while some := list(islice(rows, _ROWS_PER_BATCH)):
        batches.append(pa.RecordBatch.from_pylist(some, schema=schema))
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
    """Go through the rows of a table; a score that is null is left out, as `PairRow` has it."""
    optional = PairRow.__optional_keys__ & set(table.column_names)
    for batch in table.to_batches(max_chunksize=_ROWS_PER_BATCH):
        for row in batch.to_pylist():
            yield {name: value for name, value in row.items() if value is not None or name not in optional}
