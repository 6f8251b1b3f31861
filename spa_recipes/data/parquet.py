"""Rows of a Parquet file, in memory that has a limit: a file of a kilobyte may hold one long text a million times."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spa_recipes.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

ALWAYS_READ_BYTES = 256 * 1024 * 1024
"""Rows of this size are read from the smallest file."""
MOST_GROWTH = 100
"""How many times the size of a larger file its rows may take. Text shrinks to a tenth, not to a hundredth."""

_ROWS_PER_BATCH = 1000
_BYTES_PER_VALUE = 8  # of a value without its text


def parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Go through the rows of a Parquet file.

    Texts that occur often stay as they are in the file, one copy each, until their size as rows is known.

    Raises:
        DataError: the rows take far more room than the file.
        Exception: of pyarrow, where the file is damaged.
    """
    import pyarrow.parquet as pq

    size = path.stat().st_size
    room = max(ALWAYS_READ_BYTES, MOST_GROWTH * size)
    too_large = DataError(
        f"{size:,} bytes of Parquet become more than {room // 1024**2:,} MiB of rows",
        where=str(path),
        fix="give the rows as JSONL if they are meant",
    )
    with pq.ParquetFile(path) as file:
        metadata = file.metadata
    if _stated_bytes(metadata) > room:
        raise too_large
    changes = _changes(metadata)
    batch_size = _few_rows(metadata) if changes else _ROWS_PER_BATCH
    with pq.ParquetFile(path, read_dictionary=sorted(_texts(metadata.schema) - changes)) as file:
        for group in range(metadata.num_row_groups):
            for batch in file.iter_batches(batch_size, row_groups=[group]):
                room -= sum(_unpacked_bytes(column) for column in batch.columns)
                if room < 0:
                    raise too_large
                yield from batch.to_pylist()


def _columns(metadata: Any) -> Iterator[tuple[Any, Any]]:
    """Each column of each group of rows, with its place in the schema."""
    for group in range(metadata.num_row_groups):
        for column in range(metadata.num_columns):
            yield metadata.row_group(group).column(column), metadata.schema.column(column)


def _stated_bytes(metadata: Any) -> int:
    """What the file says of its size: its texts once each, and its values without their texts."""
    return sum(
        column.total_uncompressed_size + column.num_values * max(_BYTES_PER_VALUE, kind.length or 0)
        for column, kind in _columns(metadata)
    )


def _changes(metadata: Any) -> set[str]:
    """Columns whose texts may be stored as changes to the text before, so that few bytes are many different texts."""
    return {c.path_in_schema for c, _ in _columns(metadata) if "DELTA_BYTE_ARRAY" in c.encodings}


def _few_rows(metadata: Any) -> int:
    """So many rows that they stay small even if each of them had all texts of its group."""
    largest = max((metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)), default=0)
    return max(1, min(_ROWS_PER_BATCH, ALWAYS_READ_BYTES // max(largest, 1)))


def _texts(schema: Any) -> set[str]:
    columns = [schema.column(number) for number in range(len(schema))]
    plain = ("STRING", "JSON", "ENUM", "NONE")
    return {c.path for c in columns if c.physical_type == "BYTE_ARRAY" and c.logical_type.type in plain}


def _unpacked_bytes(values: pa.Array) -> int:
    """The size of an array when each of its texts has its own copy."""
    import pyarrow as pa
    import pyarrow.compute as pc

    own = len(values) * _BYTES_PER_VALUE
    kind = values.type
    if pa.types.is_dictionary(kind):
        if not (pa.types.is_large_unicode(kind.value_type) or pa.types.is_unicode(kind.value_type)):
            return own + int(values.dictionary.nbytes)
        lengths = pc.binary_length(values.dictionary).cast(pa.int64())
        return own + int(pc.sum(lengths.take(values.indices)).as_py() or 0)
    if pa.types.is_map(kind):
        return own + _unpacked_bytes(values.keys) + _unpacked_bytes(values.items)
    if pa.types.is_struct(kind):
        return own + sum(_unpacked_bytes(field) for field in values.flatten())
    if pa.types.is_nested(kind):
        return own + _unpacked_bytes(values.flatten())
    return own + int(values.nbytes)
