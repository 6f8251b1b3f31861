"""Rows of a file, as they stand in it: JSON lines, JSON, CSV and Parquet. Heavy imports are in functions."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from spa_recipes.data.forms.form import kind_of
from spa_recipes.data.places import JSONL_SUFFIXES, PARQUET_SUFFIXES
from spa_recipes.data.rows import BOM, not_utf8, read_lines, refuse_wide
from spa_recipes.errors import DataError, SpaError, TryAgainError

# Columns that hold lists of strings; elsewhere, a text that happens to be JSON stays a text.
_LIST_COLUMNS = {"output", "responses", "history"}


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
    suffix = path.suffix.lower()
    if suffix in JSONL_SUFFIXES:
        return _read_jsonl(path)
    if suffix == ".json":
        return _read_json(path)
    if suffix in PARQUET_SUFFIXES:
        return _read_parquet(path)
    if suffix == ".csv":
        return _read_csv(path)
    raise DataError(
        f"files of kind {suffix or 'without suffix'} are not read",
        where=str(path),
        fix="give a .jsonl, .json, .parquet or .csv file, a dataset folder, or a Hub id",
    )


def _read_jsonl(path: Path) -> Iterator[RawRow]:
    for line in read_lines(path):
        yield RawRow(line.number, f"{path}:{line.number}", line.value, line.error)


def _read_json(path: Path) -> Iterator[RawRow]:
    text = _read_text(path)
    # Many files named .json hold JSON lines.
    if text.lstrip().startswith("{"):
        yield from _read_jsonl(path)
        return
    try:
        rows = json.loads(text) if text.strip() else []
    except RecursionError as error:
        raise DataError("JSON is nested too deeply", where=str(path)) from error
    except ValueError as error:
        raise DataError(
            f"not JSON, or cut off ({error})", where=str(path), fix="give an array of objects, or JSON lines"
        ) from error
    if not isinstance(rows, list):
        raise DataError(
            f"not an array of objects but a {type(rows).__name__}", where=str(path), fix="give an array of objects"
        )
    for number, value in enumerate(rows, start=1):
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


def _read_csv(path: Path) -> Iterator[RawRow]:
    """Rows of a CSV file with a header line; numbers count the rows below it. Empty cells are empty strings."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), strict=True)
    try:
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise DataError("the header names a column twice", where=f"{path}:1", fix="rename one")
        number = 0
        decoded: set[str] | None = None
        for cells in reader:
            if not cells:
                continue
            number += 1
            where = f"{path}, row {number}"
            if len(cells) != len(header):
                what = f"{len(cells)} cells under a header of {len(header)}"
                yield RawRow(number, where, None, DataError(what, where=where, fix="quote cells that hold commas"))
                continue
            row: dict[str, Any] = dict(zip(header, cells, strict=True))
            if decoded is None:
                decoded = {name for name, cell in row.items() if _holds_json(name, cell, where)}
            yield _decode_cells(RawRow(number, where, row), decoded)
    except csv.Error as error:
        fix = "quote cells that hold commas, quotes or line breaks"
        raise DataError(f"not CSV ({error})", where=f"{path}:{reader.line_num}", fix=fix) from error


def _holds_json(name: str, cell: str, where: str) -> bool:
    """Whether a CSV cell is the JSON of messages, or, in the columns that may hold one, of a list of strings."""
    if re.match(r"\[?\{'(role|content|from|value)'", cell):
        raise DataError(
            f"column {name} holds lists or objects as Python prints them, which cannot be read back safely",
            where=where,
            fix="export the dataset as JSONL or Parquet",
        )
    if not cell.startswith(("[", "{")):
        return False
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        return False
    kind = kind_of(value)
    return kind in ("messages", "message") or (kind in ("texts", "other", "empty list") and name in _LIST_COLUMNS)


def _decode_cells(raw: RawRow, columns: set[str]) -> RawRow:
    assert raw.value is not None
    for name in columns:
        try:
            raw.value[name] = json.loads(raw.value[name])
        except (ValueError, RecursionError):
            what = f"column {name} is not JSON, as it is in the first row"
            return RawRow(raw.row, raw.where, None, DataError(what, where=raw.where))
    return raw


def _read_text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be opened ({error.strerror or error})", where=str(path)) from error
    refuse_wide(raw, path)
    offset = len(BOM) if raw.startswith(BOM) else 0
    try:
        return raw[offset:].decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, offset + error.start) + 1
        raise not_utf8(error, offset, f"{path}:{line}") from error


def unreadable(path: Path, what: str, error: Exception) -> SpaError:
    """What a library says of a file or folder as an error of ours."""
    if isinstance(error, MemoryError):
        return TryAgainError("out of memory while reading the data", where=str(path))
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return DataError(f"{what} ({reason})", where=str(path), fix="download or write it again")
