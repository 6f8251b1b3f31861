"""Rows of a file, as they stand in it: JSON lines, JSON, CSV and Parquet. Heavy imports are in functions."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple

from spa_recipes.data.json_files import elements, layout_of, rows_of_object
from spa_recipes.data.opening import open_text
from spa_recipes.data.places import CSV_SUFFIXES, JSONL_SUFFIXES, PARQUET_SUFFIXES, data_suffix
from spa_recipes.data.rows import BOM, lines_of, not_utf8
from spa_recipes.errors import DataError, SpaError, TryAgainError

_DELIMITERS = ",;\t|"


class RawRow(NamedTuple):
    """A row of a source: its number from 1 (the line in JSONL), its place in words, and its columns."""

    row: int
    where: str
    value: dict[str, Any] | None
    error: DataError | None = None


def read_file(path: Path) -> Iterator[RawRow]:
    """Go through the rows of a file; a malformed row is an item with its error.

    Raises:
        DataError: the file is of an unknown kind, or unreadable as a whole.
    """
    suffix = data_suffix(path)
    if suffix in JSONL_SUFFIXES:
        return _read_jsonl(path)
    if suffix == ".json":
        return _read_json(path)
    if suffix in PARQUET_SUFFIXES and suffix == path.suffix.lower():
        return _read_parquet(path)
    if suffix in CSV_SUFFIXES:
        return _read_csv(path, "\t" if suffix == ".tsv" else "")
    raise DataError(
        f"files of kind {path.suffix or 'without suffix'} are not read",
        where=str(path),
        fix="give a .jsonl, .json, .parquet, .csv or .tsv file, text also as .gz or .zst, a folder, or a Hub id",
    )


def _read_jsonl(path: Path) -> Iterator[RawRow]:
    with open_text(path) as file:
        place = f"{path}:"
        for number, value, error in lines_of(file, path):
            yield RawRow(number, f"{place}{number}", value, error)


def _read_json(path: Path) -> Iterator[RawRow]:
    """Rows of an array, of JSON lines (which many files named .json hold), or of an object with one list of rows."""
    layout = layout_of(path)
    values = elements(path) if layout == "array" else rows_of_object(path) if layout == "object" else None
    if values is None:
        yield from _read_jsonl(path)
        return
    for number, value in enumerate(values, start=1):
        where = f"{path}, row {number}"
        if isinstance(value, dict):
            yield RawRow(number, where, value)
        else:
            what = f"not a JSON object but a {type(value).__name__}"
            yield RawRow(number, where, None, DataError(what, where=where))


def _read_parquet(path: Path) -> Iterator[RawRow]:
    from spa_recipes.data.parquet import parquet_rows

    number = 0
    try:
        for value in parquet_rows(path):
            number += 1
            yield RawRow(number, f"{path}, row {number}", value)
    except DataError:
        raise
    except Exception as error:  # pyarrow raises its own kinds, OSError and UnicodeDecodeError
        raise unreadable(path, f"not a Parquet file, or damaged or cut off after row {number}", error) from error


def _read_csv(path: Path, delimiter: str) -> Iterator[RawRow]:
    """Rows of a CSV file with a header line; numbers count the rows below it. Empty cells are empty strings.

    Without a delimiter, it is the comma, or what the header has in its place.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with open_text(path) as file:
        lines = _decoded_lines(file, path)
        first = next(lines, "").removeprefix(BOM.decode())
        reader = csv.reader(chain([first], lines), strict=True, delimiter=delimiter or delimiter_of(first))
        try:
            yield from _csv_rows(reader, path)
        except csv.Error as error:
            fix = "quote cells that hold commas, quotes or line breaks"
            raise DataError(f"not CSV ({error})", where=f"{path}:{reader.line_num}", fix=fix) from error


def _csv_rows(reader: Any, path: Path) -> Iterator[RawRow]:
    header: list[str] = next(reader, [])
    if len(set(header)) < len(header):
        raise DataError("the header names a column twice", where=f"{path}:1", fix="rename one")
    number = 0
    for cells in reader:
        if not cells:
            continue
        number += 1
        where = f"{path}, row {number}"
        if len(cells) != len(header):
            what = f"{len(cells)} cells under a header of {len(header)}"
            yield RawRow(number, where, None, DataError(what, where=where, fix="quote cells that hold commas"))
        else:
            yield RawRow(number, where, dict(zip(header, cells, strict=True)))


def delimiter_of(header: str) -> str:
    """The comma where the header has one, else the first of the others that it has."""
    return next((mark for mark in _DELIMITERS if mark in header), ",")


def _decoded_lines(file: IO[bytes], path: Path) -> Iterator[str]:
    offset = 0
    for number, line in enumerate(file, start=1):
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise not_utf8(error, offset, f"{path}:{number}") from error
        offset += len(line)


def unreadable(path: Path, what: str, error: Exception) -> SpaError:
    """What a library says of a file or folder as an error of ours."""
    if isinstance(error, MemoryError):
        return TryAgainError("out of memory while reading the data", where=str(path))
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return DataError(f"{what} ({reason})", where=str(path), fix="download or write it again")
