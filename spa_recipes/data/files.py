"""Rows of a file, as they stand in it: JSON lines, JSON, CSV and Parquet. Heavy imports are in functions."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, NamedTuple

from spa_recipes.data.forms.form import kind_of
from spa_recipes.data.opening import open_text
from spa_recipes.data.places import CSV_SUFFIXES, JSONL_SUFFIXES, PARQUET_SUFFIXES, data_suffix
from spa_recipes.data.rows import BOM, lines_of, not_utf8
from spa_recipes.errors import DataError, SpaError, TryAgainError

_DELIMITERS = ",;\t|"
_CHARACTERS_AT_ONCE = 1024 * 1024


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
        for line in lines_of(file, path):
            yield RawRow(line.number, f"{path}:{line.number}", line.value, line.error)


def _read_json(path: Path) -> Iterator[RawRow]:
    """Rows of an array, of JSON lines (which many files named .json hold), or of an object with one list of rows."""
    with open_text(path) as file:
        start = next((line for line in file if line.removeprefix(BOM).strip()), b"").removeprefix(BOM)
        more = any(line.strip() for line in file)
    if start.lstrip().startswith(b"{"):
        rows = None if more and _is_json(start) else _only_list(path)
        if rows is None:
            yield from _read_jsonl(path)
            return
        values: Iterator[Any] = iter(rows)
    else:
        values = _elements(path)
    for number, value in enumerate(values, start=1):
        where = f"{path}, row {number}"
        if isinstance(value, dict):
            yield RawRow(number, where, value)
        else:
            what = f"not a JSON object but a {type(value).__name__}"
            yield RawRow(number, where, None, DataError(what, where=where))


def _only_list(path: Path) -> list[Any] | None:
    """The list of rows in a file with one object at the top; None where that object is a row, or no JSON.

    Raises:
        DataError: it is neither.
    """
    with open_text(path) as file:
        try:
            top = json.loads(_text(file, path))
        except (ValueError, RecursionError):
            return None  # reading it as lines names the one that is wrong
    lists = [value for value in top.values() if isinstance(value, list) and _are_rows(value)]
    if len(lists) == 1:
        (rows,) = lists
        return rows
    if any(isinstance(value, str) or kind_of(value) == "messages" for value in top.values()):
        return None
    raise DataError(
        f"one object with the keys {', '.join(list(top)[:8])} and not a list of rows",
        where=str(path),
        fix="give an array of objects, JSON lines, or an object with one list of rows, such as {data: [...]}",
    )


def _are_rows(values: list[Any]) -> bool:
    return bool(values) and all(isinstance(value, dict) for value in values) and kind_of(values) == "other"


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _elements(path: Path) -> Iterator[Any]:
    """The elements of a JSON array one after the other, so that never all of them are in memory."""
    with open_text(path) as file:
        pieces = _decoded(file, path)
        text = next(pieces, "").removeprefix(BOM.decode()).lstrip()
        while not text and (piece := next(pieces, "")):
            text = piece.lstrip()
        if text and text[0] != "[":
            what = f"not an array of objects but a {type(_whole(text + ''.join(pieces), path)).__name__}"
            raise DataError(what, where=str(path), fix="give an array of objects")
        place, first = 1, True
        while text:
            try:
                value, place = _element(text, place, first=first)
            except RecursionError as error:
                raise DataError("JSON is nested too deeply", where=str(path)) from error
            except (ValueError, IndexError) as error:
                # Pieces grow with what is pending, so that a long element is not parsed again and again.
                further = "".join(islice(pieces, 1 + (len(text) - place) // _CHARACTERS_AT_ONCE))
                if not further:
                    raise _not_json(error, path) from error
                text, place = text[place:] + further, 0
            else:
                if value is _END:
                    if (text[place:] + "".join(pieces)).strip():
                        what = "there is text behind the end of the array"
                        raise DataError(what, where=str(path), fix="give one array of objects")
                    return
                first = False
                yield value


_END = object()
_DECODER = json.JSONDecoder()


def _element(text: str, place: int, *, first: bool) -> tuple[Any, int]:
    """The next element of an array, or `_END`, and the place behind it.

    Raises:
        ValueError, IndexError: it is not JSON, or goes on behind the text.
    """
    place = _past_space(text, place)
    if text[place] == "]":
        return _END, place + 1
    if not first:
        if text[place] != ",":
            raise ValueError("a comma is missing")
        place = _past_space(text, place + 1)
    value, end = _DECODER.raw_decode(text, place)
    text[_past_space(text, end)]  # where there is nothing, a number may go on
    return value, end


def _past_space(text: str, place: int) -> int:
    while place < len(text) and text[place] in " \t\r\n":
        place += 1
    return place


def _whole(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except RecursionError as error:
        raise DataError("JSON is nested too deeply", where=str(path)) from error
    except ValueError as error:
        raise _not_json(error, path) from error


def _not_json(error: Exception, path: Path) -> DataError:
    fix = "give an array of objects, or JSON lines"
    return DataError(f"not JSON, or cut off ({error})", where=str(path), fix=fix)


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
        reader = csv.reader(chain([first], lines), strict=True, delimiter=delimiter or _delimiter_of(first))
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


def _delimiter_of(header: str) -> str:
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


def _decoded(file: IO[bytes], path: Path) -> Iterator[str]:
    """The text of a file in pieces."""
    piece: list[str] = []
    size = 0
    for line in _decoded_lines(file, path):
        piece.append(line)
        size += len(line)
        if size >= _CHARACTERS_AT_ONCE:
            yield "".join(piece)
            piece, size = [], 0
    if piece:
        yield "".join(piece)


def _text(file: IO[bytes], path: Path) -> str:
    return "".join(_decoded(file, path)).removeprefix(BOM.decode())


def unreadable(path: Path, what: str, error: Exception) -> SpaError:
    """What a library says of a file or folder as an error of ours."""
    if isinstance(error, MemoryError):
        return TryAgainError("out of memory while reading the data", where=str(path))
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return DataError(f"{what} ({reason})", where=str(path), fix="download or write it again")
