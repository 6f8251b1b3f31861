"""From a source to raw rows: a file, a dataset folder or a Hub id. Heavy imports are in functions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spa_recipes.data.arrow_files import refuse_compressed
from spa_recipes.data.files import RawRow, read_file, unreadable
from spa_recipes.data.folders import data_files, foreign, saved_files
from spa_recipes.data.hub import csv_of_texts, hub_error
from spa_recipes.data.parquet import room_for, unpacked_bytes
from spa_recipes.data.places import existing_path
from spa_recipes.errors import DataError, SpaError
from spa_recipes.recipe.schema import DatasetSource

DEFAULT_SPLITS = ("train_prefs", "train_sft", "train")


def read_raw(source: DatasetSource) -> Iterator[RawRow]:
    """Go through the rows of a source; a malformed row is an item with its error.

    Raises:
        DataError: the source is missing, of an unknown kind, or unreadable as a whole.
        TryAgainError: the network failed.
    """
    path = existing_path(source.name)
    if path is None:
        return _read_hub(source)
    if path.is_dir():
        return _read_folder(path, source)
    _check_file_settings(source)
    return read_file(path)


def local_file(source: DatasetSource) -> Path | None:
    """The path of a local source whose rows need no library; None for the Hub, and for a sound `save_to_disk` folder.

    Raises:
        DataError: the source is missing, or names a file outside of its folder.
    """
    path = existing_path(source.name)
    if path is not None and _is_saved(path):
        saved_files(path)
        return None
    return path


def _is_saved(path: Path) -> bool:
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def _check_file_settings(source: DatasetSource) -> None:
    if source.split not in (None, "train") or source.config_name is not None or source.revision is not None:
        raise DataError(
            "a single file has no split, config_name or revision", where=source.name, fix="leave these keys out"
        )


def _read_folder(path: Path, source: DatasetSource) -> Iterator[RawRow]:
    if source.revision is not None:
        raise DataError("a local folder has no revision", where=source.name, fix="leave revision out")
    if _is_saved(path):
        return _rows_of(_saved(path), source)
    splits = data_files(path, source.config_name)
    return _numbered(splits[_choose_split(list(splits), source)])


def _saved(path: Path) -> Any:
    """A folder of `save_to_disk`, read by `datasets` after a look at the names in it."""
    import datasets

    try:
        for file in saved_files(path):
            refuse_compressed(file)
        return datasets.load_from_disk(str(path))
    except SpaError:
        raise
    except Exception as error:  # datasets raises nearly every kind
        raise unreadable(path, "not a dataset folder of save_to_disk, or damaged", error) from error


def _numbered(files: list[Path]) -> Iterator[RawRow]:
    """Rows of several files, which are numbered through."""
    before = 0
    for file in files:
        last = 0
        for row in read_file(file):
            last = row.row
            yield row._replace(row=before + last)
        before += last


def _read_hub(source: DatasetSource) -> Iterator[RawRow]:
    import datasets

    try:
        place = {"path": source.name, "name": source.config_name, "revision": source.revision}
        builder = datasets.load_dataset_builder(**place)
        if outside := foreign(source.name, builder.config.data_files or {}):
            raise outside
        if hasattr(builder.config, "keep_default_na"):
            builder = datasets.load_dataset_builder(**place, **csv_of_texts(builder.config))
        builder.download_and_prepare()
        data = builder.as_dataset()
    except SpaError:
        raise
    except Exception as error:  # datasets, the Hub client and the network raise nearly every kind
        if isinstance(error, MemoryError):
            raise
        raise _hub_error(source, error) from error
    return _rows_of(data, source)


def _rows_of(data: Any, source: DatasetSource) -> Iterator[RawRow]:
    """Rows of a `datasets` Dataset, or of the split of a DatasetDict that the source means."""
    name = source.name
    if isinstance(data, dict):
        split = _choose_split([str(key) for key in data], source)
        data, name = data[split], f"{name}, split {split}"
    elif source.split not in (None, str(data.split)):
        raise DataError(f"the folder holds one dataset without split {source.split}", where=name, fix="leave split out")
    return _iterate(data, name)


def _iterate(data: Any, name: str) -> Iterator[RawRow]:
    """Rows as plain Python values, whatever format was saved (torch, numpy), in memory that has a limit."""
    size = sum(Path(file["filename"]).stat().st_size for file in data.cache_files) or data.data.nbytes
    room, number = room_for(size), 0
    for table in data.with_format("arrow").iter(batch_size=1000):
        try:
            table.validate(full=True)
            room -= sum(unpacked_bytes(chunk) for column in table.columns for chunk in column.chunks)
        except Exception as error:  # pyarrow raises its own kinds
            raise unreadable(Path(name), f"damaged after row {number}", error) from error
        if room < 0:
            raise DataError(
                f"{size:,} bytes become more than {room_for(size) // 1024**2:,} MiB of rows",
                where=name,
                fix="give the rows as JSONL if they are meant",
            )
        for row in table.to_pylist():
            number += 1
            yield RawRow(number, f"{name}, row {number}", row)


def _choose_split(splits: list[str], source: DatasetSource) -> str:
    listed = ", ".join(splits)
    if source.split is not None:
        if source.split in splits:
            return source.split
        raise DataError(f"no split {source.split}", where=source.name, fix=f"set split to one of: {listed}")
    if len(splits) == 1:
        return splits[0]
    for split in DEFAULT_SPLITS:
        if split in splits:
            return split
    raise DataError("several splits and none is the usual", where=source.name, fix=f"set split to one of: {listed}")


def _hub_error(source: DatasetSource, error: Exception) -> SpaError:
    text = str(error)
    if isinstance(error, ValueError) and "onfig" in text:
        listed = re.search(r"\[.*?\]", text, re.DOTALL)
        fix = f"set config_name to one of: {listed.group(0).strip('[]')}" if listed else "check config_name"
        what = f"no configuration {source.config_name}" if source.config_name else "there are several configurations"
        return DataError(what, where=source.name, fix=fix)
    return hub_error("dataset", source.name, error)
