"""The files of a dataset folder. What its own files say about names is believed only for files inside the folder.

A README.md may name files (`configs: data_files`), and so may the `state.json` of `save_to_disk`. Without that, splits
are told from the names of files and folders, as the Hub does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from spa_recipes.data.places import CSV_SUFFIXES, JSONL_SUFFIXES, PARQUET_SUFFIXES, data_suffix
from spa_recipes.errors import DataError
from spa_recipes.state.digests import files_below
from spa_recipes.state.reading import read_json, read_text

_KINDS = (PARQUET_SUFFIXES, JSONL_SUFFIXES, {".json"}, CSV_SUFFIXES)
_NO_DATA = {"config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
_PART = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})([^/]*)")
_SNAPSHOT = re.compile(r"(.*?)\bsnapshots/([^/]+)/.*")
_SHARD = re.compile(r"data/([\w.]+(?:-\w+)*)-[0-9]{5}-of-[0-9]{5}[^/]*")
_WORDS = {
    "train": "train|training",
    "validation": "validation|valid|dev|val",
    "test": "test|testing|eval|evaluation",
}
_IN_PATH = {split: re.compile(rf"(?:^|[-._ 0-9/])(?:{words})(?=[-._ 0-9/]|$)") for split, words in _WORDS.items()}
_LONGEST_README = 1024 * 1024
_LONGEST_PATTERN = 500


def data_files(folder: Path, config_name: str | None) -> dict[str, list[Path]]:
    """The data files of a folder by split, in a fixed order; those of one kind where there are several kinds.

    Args:
        folder: a dataset as the Hub lays it out.
        config_name: the configuration of its README.md, None for the only or the default one.

    Raises:
        DataError: there are no such files, or one is outside of the folder.
    """
    files = {path.relative_to(folder).as_posix(): path for path in files_below(folder) if path.name not in _NO_DATA}
    config = _config(folder, config_name)
    if config is None:
        named = _splits_by_name([name for name in files if any(data_suffix(Path(name)) in kind for kind in _KINDS)])
    else:
        matching = {split: _matching(folder, patterns) for split, patterns in config.items()}
        named = {split: [name for name in files if name in names] for split, names in matching.items()}
    kind = _most_common_kind([name for names in named.values() for name in names])
    found = {
        split: [files[name] for name in names if data_suffix(Path(name)) in kind] for split, names in named.items()
    }
    found = {split: paths for split, paths in found.items() if paths}
    if not found:
        raise _no_data(folder)
    used = [path for paths in found.values() for path in paths]
    for path in used:
        _refuse_outside(folder, path)
    _refuse_snapshots(folder, [path.relative_to(folder).as_posix() for path in used])
    for paths in found.values():
        _refuse_lost_parts(folder, [path.relative_to(folder).as_posix() for path in paths])
    return found


def _no_data(folder: Path) -> DataError:
    saved = sorted(
        path.parent.name for name in ("state.json", "dataset_dict.json") for path in folder.glob(f"*/{name}")
    )
    if saved:
        fix = f"name one of them, such as {folder / saved[0]}"
        return DataError(f"the folder holds several datasets: {', '.join(saved[:8])}", where=str(folder), fix=fix)
    return DataError(
        "not a dataset folder: no data files are in it",
        where=str(folder),
        fix="give a folder with .parquet, .jsonl, .json, .csv or .tsv files, or one of save_to_disk",
    )


def _refuse_snapshots(folder: Path, names: Sequence[str]) -> None:
    """A cache of the Hub may hold several versions of a dataset, which are not one dataset together."""
    found = {(match[1], match[2]) for name in names if (match := _SNAPSHOT.fullmatch(name))}
    if len(found) > 1:
        listed = [f"{before}snapshots/{name}" for before, name in sorted(found)]
        raise DataError(
            f"the folder holds {len(found)} snapshots: {', '.join(listed[:8])}",
            where=str(folder),
            fix=f"name one of them, such as {folder / listed[0]}",
        )


def _refuse_lost_parts(folder: Path, names: Sequence[str]) -> None:
    """Of files that are named as parts of a whole, all are there and none is of another whole."""
    wholes: dict[tuple[str, str], dict[str, set[str]]] = {}
    for name in names:
        if match := _PART.fullmatch(name):
            wholes.setdefault((match[1], match[4]), {}).setdefault(match[3], set()).add(match[2])
    for (name, rest), by_total in wholes.items():
        if len(by_total) > 1:
            listed = " and ".join(f"{name}-*-of-{total}{rest}" for total in sorted(by_total))
            raise DataError(
                f"files of two versions of the dataset: {listed}", where=str(folder), fix="delete those of the old one"
            )
        ((total, numbers),) = by_total.items()
        missing = [number for number in (f"{i:05d}" for i in range(int(total))) if number not in numbers]
        if missing:
            raise DataError(
                f"{len(missing)} of {int(total)} files are missing, such as {name}-{missing[0]}-of-{total}{rest}",
                where=str(folder),
                fix="download the dataset again",
            )


def saved_files(folder: Path) -> list[Path]:
    """The Arrow files that the files of a folder of `save_to_disk` name.

    Raises:
        DataError: one is not the name of a file in the folder, or cannot be read.
    """
    try:
        if (folder / "dataset_dict.json").is_file():
            splits = read_json(folder / "dataset_dict.json")["splits"]
            parts = [(folder / _plain(folder, name)) for name in splits]
        else:
            parts = [folder]
        found = []
        for part in parts:
            _refuse_outside(folder, part / "state.json")
            named = [entry["filename"] for entry in read_json(part / "state.json")["_data_files"]]
            found += [part / _plain(folder, name) for name in named]
        for path in found:
            _refuse_outside(folder, path)
        return found
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(
            f"not a dataset folder of save_to_disk, or damaged ({error})", where=str(folder), fix="save it again"
        ) from error


def foreign(name: str, files: Mapping[str, Sequence[str]]) -> DataError | None:
    """The error for a dataset of the Hub whose README.md names files that are not its own; None where all are."""
    own = re.compile(rf"(hf://|https?://[^/]+/)datasets/([^/@]+/)?{re.escape(name)}(@|/resolve/)", re.IGNORECASE)
    for file in (file for names in files.values() for file in names):
        if not own.match(file.rsplit("::", 1)[-1]):
            return DataError(f"the dataset names a file that is not its own: {file}", where=name, fix="do not use it")
    return None


def _plain(folder: Path, name: Any) -> str:
    if not isinstance(name, str) or "/" in name or name in ("", ".", ".."):
        raise DataError(f"{name!r} is not the name of a file in this folder", where=str(folder), fix="save it again")
    return name


def _refuse_outside(folder: Path, path: Path) -> None:
    """Refuse a link that leads out. The Hub's own cache keeps the files of a snapshot beside it, in `blobs`."""
    root = folder.resolve()
    allowed = [root, *([root.parents[1] / "blobs"] if root.parent.name == "snapshots" else [])]
    if not any(path.resolve().is_relative_to(place) for place in allowed):
        raise DataError(
            f"{path.relative_to(folder)} is a link out of the dataset folder",
            where=str(folder),
            fix="copy the file into the folder",
        )


def _splits_by_name(names: list[str]) -> dict[str, list[str]]:
    shards: dict[str, list[str]] = {}
    for name in names:
        if found := _SHARD.fullmatch(name):
            shards.setdefault(found[1], []).append(name)
    if shards:
        return shards
    by_word = {split: [name for name in names if word.search(name)] for split, word in _IN_PATH.items()}
    by_word = {split: found for split, found in by_word.items() if found}
    return by_word or {"train": names}


def _most_common_kind(names: list[str]) -> set[str]:
    suffixes = [data_suffix(Path(name)) for name in names]
    return max(_KINDS, key=lambda kind: sum(suffix in kind for suffix in suffixes))


# --- README.md


def _config(folder: Path, wanted: str | None) -> dict[str, list[str]] | None:
    """Patterns of file names by split, as the README.md of a dataset has them for a configuration; None without any."""
    configs = {str(config.get("config_name")): config for config in _configs(folder)}
    if wanted is not None and wanted not in configs:
        listed = f"set config_name to one of: {', '.join(configs)}" if configs else "leave config_name out"
        raise DataError(f"no configuration {wanted}", where=str(folder), fix=listed)
    if not configs:
        return None
    default = [name for name, config in configs.items() if config.get("default") is True or name == "default"]
    chosen = wanted or (next(iter(configs)) if len(configs) == 1 else next(iter(default), None))
    if chosen is None:
        fix = f"set config_name to one of: {', '.join(configs)}"
        raise DataError("there are several configurations", where=str(folder), fix=fix)
    config = configs[chosen]
    below = str(config.get("data_dir") or "")
    patterns = {split: [*_patterns(folder, below, named)] for split, named in _named(config.get("data_files"))}
    return patterns or (None if not below else {"train": [*_patterns(folder, below, "**")]})


def _configs(folder: Path) -> list[dict[str, Any]]:
    """The section `configs` in the head of README.md."""
    import yaml

    readme = folder / "README.md"
    if not readme.is_file():
        return []
    try:
        text = read_text(readme, limit=_LONGEST_README)
        head = text.split("\n---", 1)[0].removeprefix("---") if text.startswith("---\n") else ""
        facts = yaml.safe_load(head)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        fix = "correct its head, or give the data files themselves"
        raise DataError(f"its head cannot be read ({reason})", where=str(readme), fix=fix) from error
    configs = facts.get("configs") if isinstance(facts, dict) else None
    return [config for config in configs if isinstance(config, dict)] if isinstance(configs, list) else []


def _named(files: Any) -> Iterator[tuple[str, Any]]:
    """Splits and what `data_files` names for each: a pattern or a list, for all splits or by split."""
    if isinstance(files, dict):
        yield from ((str(split), named) for split, named in files.items())
    elif isinstance(files, list) and all(isinstance(entry, dict) for entry in files):
        yield from ((str(entry.get("split", "train")), entry.get("path")) for entry in files)
    elif files is not None:
        yield "train", files


def _patterns(folder: Path, below: str, named: Any) -> Iterator[str]:
    for pattern in named if isinstance(named, list) else [named]:
        inside = isinstance(pattern, str) and "://" not in pattern and "::" not in pattern
        whole = f"{below.rstrip('/')}/{pattern}" if below else f"{pattern}".removeprefix("./")
        if not inside or whole.startswith(("/", "~")) or ".." in whole.split("/"):
            raise DataError(
                f"data_files names {pattern!r}, which is not in this folder",
                where=str(folder / "README.md"),
                fix="copy the file into the folder and correct data_files",
            )
        if len(whole) > _LONGEST_PATTERN or whole.count("**") > 2:
            raise DataError(
                f"data_files has a pattern that is too long: {whole[:60]}...",
                where=str(folder / "README.md"),
                fix="name the files",
            )
        yield whole


def _matching(folder: Path, patterns: Sequence[str]) -> set[str]:
    """Names of what matches; `**` is any number of folders, and everything in them where it ends a pattern."""
    whole = [f"{pattern}/*" if pattern.endswith("**") else pattern for pattern in patterns]
    try:
        return {path.relative_to(folder).as_posix() for pattern in whole for path in folder.glob(pattern)}
    except (ValueError, NotImplementedError, RecursionError) as error:
        raise DataError(
            f"data_files has a pattern that cannot be used ({error})",
            where=str(folder / "README.md"),
            fix="name the files",
        ) from error
