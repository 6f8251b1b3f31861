"""What the pages of a Parquet file say of themselves, which is what a reader makes room for.

The metadata at the end of the file repeats it, and may lie. A page begins with a header in Thrift's compact protocol:
https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift (PageHeader),
https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md.
"""

from __future__ import annotations

import os
from typing import IO, Any, NamedTuple

DELTA_BYTE_ARRAY = 7
"""The encoding in which a text is stored as its change to the one before."""

_UNCOMPRESSED, _COMPRESSED, _DATA, _DICTIONARY, _DATA_V2 = 2, 3, 5, 7, 8
_VALUES, _ENCODING, _ENCODING_V2 = 1, 2, 4
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12
_DEEPEST = 8


class Pages(NamedTuple):
    """The pages of a column in a group of rows.

    Attributes:
        uncompressed: bytes that they take without their compression.
        values: that they hold.
        encodings: of their values, by number.
    """

    uncompressed: int
    values: int
    encodings: frozenset[int]


def pages_of(file: IO[bytes], column: Any) -> Pages:
    """Read the headers of a column's pages.

    Args:
        file: open for reading.
        column: its metadata in a group of rows, as pyarrow gives it.

    Raises:
        ValueError: something else is in their place.
    """
    start = column.data_page_offset
    if column.has_dictionary_page and 0 < column.dictionary_page_offset < start:
        start = column.dictionary_page_offset
    end = start + column.total_compressed_size
    uncompressed, values, encodings = 0, 0, set[int]()
    file.seek(start)
    while file.tell() < end and values < column.num_values:  # where pyarrow ends, too
        header = _struct(file, _DEEPEST)
        uncompressed += _size(header, _UNCOMPRESSED)
        for kind, encoding in ((_DATA, _ENCODING), (_DICTIONARY, _ENCODING), (_DATA_V2, _ENCODING_V2)):
            if isinstance(page := header.get(kind), dict):
                values += 0 if kind == _DICTIONARY else max(0, page.get(_VALUES, 0))
                encodings.add(page.get(encoding, 0))
        file.seek(_size(header, _COMPRESSED), os.SEEK_CUR)
    return Pages(uncompressed, values, frozenset(encodings))


def _size(header: dict[int, Any], field: int) -> int:
    size = header.get(field)
    if not isinstance(size, int) or size < 0:
        raise ValueError("a page without its size")
    return size


def _struct(file: IO[bytes], deepest: int) -> dict[int, Any]:
    """The integers and the structures of a structure by the numbers of their fields."""
    if not deepest:
        raise ValueError("a page's header is nested too deep")
    found: dict[int, Any] = {}
    field = 0
    while head := _byte(file):
        kind, step = head & 0x0F, head >> 4
        field = field + step if step else _integer(file)
        found[field] = _value(file, kind, deepest)
    return found


def _value(file: IO[bytes], kind: int, deepest: int) -> Any:
    if kind in (_TRUE, _FALSE):
        return kind == _TRUE
    if kind == _BYTE:
        return _byte(file)
    if kind in (_I16, _I32, _I64):
        return _integer(file)
    if kind == _STRUCT:
        return _struct(file, deepest - 1)
    if kind == _DOUBLE:
        file.seek(8, os.SEEK_CUR)
    elif kind == _BINARY:
        file.seek(_varint(file), os.SEEK_CUR)
    elif kind in (_LIST, _SET):
        head = _byte(file)
        for _ in range(head >> 4 if head >> 4 < 15 else _varint(file)):
            _byte(file) if head & 0x0F in (_TRUE, _FALSE) else _value(file, head & 0x0F, deepest - 1)
    else:
        raise ValueError("a page's header that is none")
    return None


def _integer(file: IO[bytes]) -> int:
    number = _varint(file)
    return (number >> 1) ^ -(number & 1)


def _varint(file: IO[bytes]) -> int:
    number = 0
    for shift in range(0, 70, 7):
        byte = _byte(file)
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number
    raise ValueError("a page's header that is none")


def _byte(file: IO[bytes]) -> int:
    byte = file.read(1)
    if not byte:
        raise ValueError("the file ends within a page's header")
    return byte[0]
