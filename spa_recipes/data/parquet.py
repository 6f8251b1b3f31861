"""Rows of a Parquet file, in memory that has a limit: a file of a kilobyte may hold one long text a million times."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from spa_recipes.data.parquet_pages import DELTA_BYTE_ARRAY, pages_of
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
        DataError: the rows take far more room than the file, or are not as many as it says.
        Exception: of pyarrow, where the file is damaged.
    """
    import pyarrow.parquet as pq

    size = path.stat().st_size
    room = room_for(size)
    too_large = DataError(
        f"{size:,} bytes of Parquet become more than {room // 1024**2:,} MiB of rows",
        where=str(path),
        fix="give the rows as JSONL if they are meant",
    )
    with pq.ParquetFile(path) as file:
        metadata = file.metadata
    names = [field.name for field in metadata.schema.to_arrow_schema()]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"the column {twice[0]} is there twice", where=str(path), fix="rename one")
    columns = list(_columns(path, metadata))
    if sum(column.bytes for column in columns) > room:
        raise too_large
    changes = {column.name for column in columns if column.changes}
    batch_size = _few_rows(columns) if changes else _ROWS_PER_BATCH
    rows = 0
    with pq.ParquetFile(path, read_dictionary=sorted(_texts(metadata.schema) - changes)) as file:
        for group in range(metadata.num_row_groups):
            for batch in file.iter_batches(batch_size, row_groups=[group]):
                room -= sum(unpacked_bytes(column) for column in batch.columns)
                if room < 0:
                    raise too_large
                rows += len(batch)
                yield from batch.to_pylist()
    if rows != metadata.num_rows:
        raise DataError(
            f"it says that it has {metadata.num_rows:,} rows, and has {rows:,}",
            where=str(path),
            fix="download or write it again",
        )


def room_for(size: int) -> int:
    """Bytes that the rows of a file of `size` bytes may take."""
    return max(ALWAYS_READ_BYTES, MOST_GROWTH * size)


class _Column(NamedTuple):
    """A column in a group of rows.

    Attributes:
        bytes: what it takes: its texts once each, and its values without their texts.
        changes: whether texts may be stored as changes to the text before, so that few bytes are many different texts.
    """

    name: str
    group: int
    bytes: int
    changes: bool


def _columns(path: Path, metadata: Any) -> Iterator[_Column]:
    """Each column of each group of rows, as its pages are; what the metadata says of their sizes may be false."""
    with path.open("rb") as file:
        for group in range(metadata.num_row_groups):
            of_group = metadata.row_group(group)
            for number in range(of_group.num_columns):
                kind, column = metadata.schema.column(number), of_group.column(number)
                pages = pages_of(file, column)
                values = max(pages.values, column.num_values)
                taken = pages.uncompressed + values * max(_BYTES_PER_VALUE, kind.length or 0)
                yield _Column(column.path_in_schema, group, taken, DELTA_BYTE_ARRAY in pages.encodings)


def _few_rows(columns: Sequence[_Column]) -> int:
    """So many rows that they stay small even if each of them had all texts of its group."""
    groups: Counter[int] = Counter()
    for column in columns:
        groups[column.group] += column.bytes
    return max(1, min(_ROWS_PER_BATCH, ALWAYS_READ_BYTES // max(1, *groups.values())))


def _texts(schema: Any) -> set[str]:
    columns = [schema.column(number) for number in range(len(schema))]
    plain = ("STRING", "JSON", "ENUM", "NONE")
    return {c.path for c in columns if c.physical_type == "BYTE_ARRAY" and c.logical_type.type in plain}


def unpacked_bytes(values: pa.Array) -> int:
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
        return own + unpacked_bytes(values.keys) + unpacked_bytes(values.items)
    if pa.types.is_struct(kind):
        return own + sum(unpacked_bytes(field) for field in values.flatten())
    if pa.types.is_nested(kind):
        return own + unpacked_bytes(values.flatten())
    return own + int(values.nbytes)
