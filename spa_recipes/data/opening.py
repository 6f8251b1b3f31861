"""Opens data files for reading, unpacked: gzip and zstandard are told by their first bytes, whatever the name says."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import IO, Any, cast

from spa_recipes.data.parquet import MOST_GROWTH, room_for
from spa_recipes.data.rows import refuse_wide
from spa_recipes.errors import DataError, TryAgainError, system_error

_HEAD = 400
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_OTHERS = {
    b"PK\x03\x04": ("a zip archive", "unpack it"),
    b"PAR1": ("a Parquet file", "give it a name that ends in .parquet"),
    b"BZh": ("packed with bzip2", "unpack it, or pack it with gzip or zstd"),
    b"\xfd7zXZ": ("packed with xz", "unpack it, or pack it with gzip or zstd"),
}
"""What a text file is not, by its first bytes, and what to do."""


def open_text(path: Path) -> IO[bytes]:
    """The bytes of a text file, unpacked.

    Raises:
        DataError: there is no such file, or it is no text. TryAgainError: the disk fails.
    """
    try:
        file = path.open("rb")
        head = file.read(_HEAD)
        file.seek(0)
    except OSError as error:
        told = system_error(error, place=str(path))
        if isinstance(told, TryAgainError):
            raise told from error
        raise DataError(f"cannot be opened ({error.strerror or error})", where=str(path)) from error
    for magic, (what, fix) in _OTHERS.items():
        if head.startswith(magic):
            file.close()
            raise DataError(f"this is {what}", where=str(path), fix=fix)
    if not head.startswith((_GZIP, _ZSTD)):
        refuse_wide(head, path)
        return file
    unpacked: Any
    if head.startswith(_GZIP):
        unpacked = gzip.GzipFile(fileobj=file)
    else:
        import pyarrow as pa

        unpacked = pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd")
    room = room_for(path.stat().st_size)
    return cast("IO[bytes]", io.BufferedReader(_Unpacked(unpacked, room, path), 1024 * 1024))


def is_packed(path: Path) -> bool:
    """Whether a file is packed with gzip or zstandard."""
    with path.open("rb") as file:
        return file.read(4).startswith((_GZIP, _ZSTD))


class _Unpacked(io.RawIOBase):
    """A stream that is unpacked while it is read, up to a limit."""

    def __init__(self, stream: Any, room: int, path: Path) -> None:
        self._stream, self._room, self._path = stream, room, path

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            found = self._stream.read(len(buffer))
        except (OSError, EOFError, ValueError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise DataError(f"cannot be unpacked ({reason})", where=str(self._path), fix="download it again") from error
        self._room -= len(found)
        if self._room < 0:
            raise DataError(
                f"{self._path.stat().st_size:,} bytes become more than {MOST_GROWTH} times as many when unpacked",
                where=str(self._path),
                fix="unpack it yourself if it is meant",
            )
        buffer[: len(found)] = found
        return len(found)
