"""Where a source is, what its content is called, and how many rows it has: what a plan asks, without reading rows."""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

from spa_recipes.data.hub import MAIN
from spa_recipes.errors import DataError
from spa_recipes.recipe.schema import DatasetSource, SandboxSource

JSONL_SUFFIXES = {".jsonl", ".ndjson"}
PARQUET_SUFFIXES = {".parquet", ".pq"}
CSV_SUFFIXES = {".csv", ".tsv"}
COMPRESSED_SUFFIXES = {".gz", ".zst"}
# Files of these kinds are read; those of the other kinds are not, but their names are no Hub ids.
READABLE_SUFFIXES = JSONL_SUFFIXES | PARQUET_SUFFIXES | CSV_SUFFIXES | {".json"}
LOCAL_SUFFIXES = READABLE_SUFFIXES | COMPRESSED_SUFFIXES | {".txt", ".arrow", ".zip", ".xlsx", ".yaml", ".yml"}
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def data_suffix(path: Path) -> str:
    """The suffix that says how a file is read: `.jsonl` for `pairs.jsonl.gz`."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in COMPRESSED_SUFFIXES else suffix


def local_path(source: str) -> Path | None:
    """The path of a local source, whether it exists or not; None for a Hub id."""
    path = Path(source).expanduser() if source.startswith("~") else Path(source)
    looks_local = (
        source.startswith((".", "/", "~"))
        or path.suffix.lower() in LOCAL_SUFFIXES
        or not _HUB_ID.fullmatch(source)
        or _exists(path)
    )
    return path if looks_local else None


def is_path(name: str) -> bool:
    """Whether a model's name can only be a path: a Hub id is `name` or `owner/name`, and no folder `owner` is here."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name or _exists(Path(name.split("/")[0]))


def no_such_folder(name: str) -> DataError:
    """The error about the name of a model that can only be a path, and where no folder is."""
    here = "" if name.startswith(("/", "~")) else f", which is relative to {Path.cwd()}"
    return DataError("no such model folder", where=name, fix=f"check the path{here}")


def existing_path(source: str) -> Path | None:
    """`local_path`, which must exist.

    Raises:
        DataError: there is no such file or folder, or it is a pipe or a device, which gives its content once or for
            ever.
    """
    path = local_path(source)
    if path is None:
        return None
    if _exists(path):
        if path.is_file() or path.is_dir():
            return path
        raise DataError("neither a file nor a folder but a pipe or a device", where=source, fix="name a file")
    import difflib

    close = difflib.get_close_matches(path.name, _siblings(path), n=1)
    check = "check the path" if path.is_absolute() else f"check the path, which is relative to {Path.cwd()}"
    fix = f"did you mean {path.parent / close[0]}?" if close else check
    raise DataError("no such file or folder", where=source, fix=fix)


def is_local(source: DatasetSource) -> bool:
    """Whether a source is on this disk, or should be; a list is of such sources."""
    return isinstance(source.source, list) or local_path(source.source) is not None


def count_rows(source: DatasetSource | SandboxSource) -> int | None:
    """Count the rows of a source where that is cheap (sandbox, JSONL, Parquet); else None.

    Raises:
        DataError: a local source is missing, or not what its name says.
    """
    if isinstance(source, SandboxSource):
        return source.rows
    if isinstance(source.source, list):
        counted = [count_rows(part) for part in source.parts]
        return None if None in counted else sum(count for count in counted if count is not None)
    path = existing_path(source.source)
    if path is None or not path.is_file():
        return None
    if path.suffix.lower() in JSONL_SUFFIXES:
        return _jsonl_rows(path)
    if path.suffix.lower() in PARQUET_SUFFIXES:
        return _parquet_rows(path)
    return None


def content_fingerprint(source: DatasetSource | SandboxSource, digest: Callable[[Path], str]) -> str:
    """Name the content of a source, for the key of a stage.

    A local file or folder by its bytes (`digest` of its path), and a list of them by those of all; a Hub dataset by its
    id, revision and configuration; the sandbox by its settings.

    Raises:
        DataError: a local source is missing or cannot be read.
    """
    if isinstance(source, SandboxSource):
        return f"sandbox:rows={source.rows},seed={source.seed}"
    if isinstance(source.source, list):
        if hub := [name for name in source.source if local_path(name) is None]:
            raise DataError("a list has files and folders only", where=hub[0], fix="name a dataset of the Hub alone")
        all_of_them = "\n".join(content_fingerprint(part, digest) for part in source.parts)
        return f"sha256:{hashlib.sha256(all_of_them.encode()).hexdigest()}"
    path = existing_path(source.source)
    if path is None:
        config = f"#{source.config_name}" if source.config_name else ""
        return f"hub:{source.source}@{source.revision or MAIN}{config}"
    try:
        return f"sha256:{digest(path)}"
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror or error})", where=source.source) from error


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long for a name, or a NUL in it
        return False


def _siblings(path: Path) -> list[str]:
    try:
        return [entry.name for entry in path.parent.iterdir()]
    except (OSError, ValueError):
        return []


def _jsonl_rows(path: Path) -> int | None:
    from spa_recipes.data.opening import is_packed  # brings the readers of all kinds of files

    try:
        if is_packed(path):
            return None
        with path.open("rb") as file:
            return sum(1 for line in file if line.strip())
    except OSError as error:
        raise DataError(f"cannot be opened ({error.strerror or error})", where=str(path)) from error


def _parquet_rows(path: Path) -> int:
    import pyarrow.parquet as pq

    try:
        count: int = pq.read_metadata(path).num_rows
    except Exception as error:  # pyarrow raises its own kinds and OSError
        raise DataError("not a Parquet file, or damaged or cut off", where=str(path), fix="write it again") from error
    return count
