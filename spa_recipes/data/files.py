"""From a source to raw rows: files of several kinds, dataset folders and Hub ids. Heavy imports are in functions."""

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
from spa_recipes.data.hub import hub_error
from spa_recipes.data.places import JSONL_SUFFIXES, PARQUET_SUFFIXES, existing_path
from spa_recipes.data.rows import BOM, not_utf8, read_lines
from spa_recipes.errors import DataError, SpaError, TryAgainError
from spa_recipes.recipe.schema import DatasetSource

DEFAULT_SPLITS = ("train_prefs", "train_sft", "train")
# Columns that hold lists of strings; elsewhere, a text that happens to be JSON stays a text.
_LIST_COLUMNS = {"output", "responses", "history"}


class RawRow(NamedTuple):
    """A row of a source: its number from 1 (the line in JSONL), its place in words, and its columns."""

    row: int
    where: str
    value: dict[str, Any] | None
    error: DataError | None = None


def read_raw(source: DatasetSource) -> Iterator[RawRow]:
    """Go through the rows of a source; a malformed row is an item with its error.

    Raises:
        DataError: the source is missing, of an unknown kind, or unreadable as a whole.
        TryAgainError: the network failed.
    """
    path = existing_path(source.source)
    if path is None:
        return _read_hub(source)
    if path.is_dir():
        return _read_folder(path, source)
    _check_file_settings(source)
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


def _check_file_settings(source: DatasetSource) -> None:
    if source.split not in (None, "train") or source.config_name is not None or source.revision is not None:
        raise DataError(
            "a single file has no split, config_name or revision", where=source.source, fix="leave these keys out"
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
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                for value in batch.to_pylist():
                    number += 1
                    yield RawRow(number, f"{path}, row {number}", value)
    except GeneratorExit:
        raise
    except Exception as error:  # pyarrow raises its own kinds, OSError and UnicodeDecodeError
        raise _unreadable(path, f"not a Parquet file, or damaged or cut off after row {number}", error) from error


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


def _read_folder(path: Path, source: DatasetSource) -> Iterator[RawRow]:
    import datasets

    if source.revision is not None:
        raise DataError("a local folder has no revision", where=source.source, fix="leave revision out")
    try:
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            data = datasets.load_from_disk(str(path))
        else:
            data = datasets.load_dataset(str(path), name=source.config_name)
    except Exception as error:  # datasets raises nearly every kind
        raise _unreadable(path, "not a dataset folder (save_to_disk, or data files), or damaged", error) from error
    return _rows_of(data, source)


def _read_hub(source: DatasetSource) -> Iterator[RawRow]:
    import datasets

    try:
        data = datasets.load_dataset(source.source, name=source.config_name, revision=source.revision)
    except Exception as error:  # datasets, the Hub client and the network raise nearly every kind
        if isinstance(error, MemoryError):
            raise
        raise _hub_error(source, error) from error
    return _rows_of(data, source)


def _rows_of(data: Any, source: DatasetSource) -> Iterator[RawRow]:
    """Rows of a `datasets` Dataset, or of the split of a DatasetDict that the source means."""
    name = source.source
    if isinstance(data, dict):
        split = _choose_split([str(key) for key in data], source)
        data, name = data[split], f"{name}, split {split}"
    elif source.split not in (None, str(data.split)):
        raise DataError(f"the folder holds one dataset without split {source.split}", where=name, fix="leave split out")
    return _iterate(data, name)


def _iterate(data: Any, name: str) -> Iterator[RawRow]:
    number = 0
    # A saved dataset may carry a format (torch, numpy); plain Python values are wanted.
    for batch in data.with_format(None).iter(batch_size=1000):
        for values in zip(*batch.values(), strict=True):
            number += 1
            yield RawRow(number, f"{name}, row {number}", dict(zip(batch, values, strict=True)))


def _choose_split(splits: list[str], source: DatasetSource) -> str:
    listed = ", ".join(splits)
    if source.split is not None:
        if source.split in splits:
            return source.split
        raise DataError(f"no split {source.split}", where=source.source, fix=f"set split to one of: {listed}")
    if len(splits) == 1:
        return splits[0]
    for split in DEFAULT_SPLITS:
        if split in splits:
            return split
    raise DataError("several splits and none is the usual", where=source.source, fix=f"set split to one of: {listed}")


def _hub_error(source: DatasetSource, error: Exception) -> SpaError:
    text = str(error)
    if isinstance(error, ValueError) and "onfig" in text:
        listed = re.search(r"\[.*?\]", text, re.DOTALL)
        fix = f"set config_name to one of: {listed.group(0).strip('[]')}" if listed else "check config_name"
        what = f"no configuration {source.config_name}" if source.config_name else "there are several configurations"
        return DataError(what, where=source.source, fix=fix)
    return hub_error("dataset", source.source, error)


def _read_text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be opened ({error.strerror or error})", where=str(path)) from error
    offset = len(BOM) if raw.startswith(BOM) else 0
    try:
        return raw[offset:].decode("utf-8")
    except UnicodeDecodeError as error:
        raise not_utf8(error, offset, str(path)) from error


def _unreadable(path: Path, what: str, error: Exception) -> SpaError:
    if isinstance(error, MemoryError):
        return TryAgainError("out of memory while reading the data", where=str(path))
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return DataError(f"{what} ({reason})", where=str(path), fix="download or write it again")
