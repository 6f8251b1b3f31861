"""The Arrow files of a folder of `save_to_disk`, looked at before a library maps them into memory.

`save_to_disk` writes them as they are in memory. In a file with compressed buffers, a few bytes may stand for
gigabytes, which pyarrow makes room for at once. The layout is that of Message.fbs in
https://arrow.apache.org/docs/format/Columnar.html.
"""

from __future__ import annotations

import struct
from pathlib import Path

from spa_recipes.errors import DataError

_HEADER, _COMPRESSION, _DATA_OF_DICTIONARY = 2, 3, 1
"""Places of fields: of a Message, of a RecordBatch, of a DictionaryBatch."""


def refuse_compressed(path: Path) -> None:
    """Refuse an Arrow file with compressed buffers.

    Raises:
        DataError: it has some.
        Exception: of pyarrow, or struct.error, where the file is damaged.
    """
    import pyarrow as pa

    with pa.memory_map(str(path)) as file:
        for message in pa.ipc.MessageReader.open_stream(file):
            if message.type in ("record batch", "dictionary") and _is_compressed(message.metadata, message.type):
                raise DataError(
                    f"{path.name} has compressed buffers, which save_to_disk does not write",
                    where=str(path.parent),
                    fix="save it again by save_to_disk, or give the rows as Parquet or JSONL",
                )


def _is_compressed(metadata: memoryview | bytes, kind: str) -> bool:
    content = memoryview(metadata)
    batch = _inner(content, _root(content), _HEADER)
    if kind == "dictionary":
        batch = _inner(content, batch, _DATA_OF_DICTIONARY)
    return _field(content, batch, _COMPRESSION) is not None


# --- FlatBuffers: https://flatbuffers.dev/internals


def _root(content: memoryview) -> int:
    (place,) = struct.unpack_from("<I", content, 0)
    return int(place)


def _field(content: memoryview, table: int, number: int) -> int | None:
    """Where a field of a table is; None if the table has none."""
    (back,) = struct.unpack_from("<i", content, table)
    layout = table - back
    (size,) = struct.unpack_from("<H", content, layout)
    if 4 + 2 * number + 2 > size:
        return None
    (place,) = struct.unpack_from("<H", content, layout + 4 + 2 * number)
    return table + place if place else None


def _inner(content: memoryview, table: int, number: int) -> int:
    """Where a table is that a field of another one names."""
    place = _field(content, table, number)
    if place is None:
        raise struct.error("a message without its content")
    (forward,) = struct.unpack_from("<I", content, place)
    return int(place + forward)
