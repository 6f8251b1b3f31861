"""Content digests, with a memo so that `spa plan` does not read 14 GB of weights every time."""

import hashlib
import json
from collections.abc import Container
from contextlib import suppress
from pathlib import Path

from spa_recipes.state import atomic
from spa_recipes.state.patience import patiently


def file_digest(path: Path) -> str:
    """sha256 of a file, as hex.

    Raises:
        OSError, TryAgainError: as `patiently`.
    """
    return patiently(_digest, path)


def _digest(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def files_below(folder: Path) -> list[Path]:
    """Files below a folder in a fixed order, without hidden ones."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


class DigestMemo:
    """Digests of local folders and files, remembered by path, size and modification time.

    The memo is a cache in the true sense: deleting it only costs time. It is written by `save`, and only where its
    folder exists already, so that a look at a plan leaves no trace. With `afresh`, each file is read once more: a run
    goes on from what is there, and content can change without its size and time.
    """

    def __init__(self, memo_file: Path, *, afresh: bool = False) -> None:
        self._file = memo_file
        self._fresh = False
        self._before: dict[str, str] = {}
        with suppress(OSError, ValueError):
            self._before = json.loads(memo_file.read_text())
        self._known = {} if afresh else dict(self._before)

    def of(self, path: Path, *, leave_out: Container[str] = ()) -> str:
        """sha256 over names and contents of a folder, but for the files `leave_out` at its top, or of one file."""
        if path.is_file():
            return self._of_file(path)
        content = hashlib.sha256()
        for file in files_below(path):
            if file.relative_to(path).as_posix() in leave_out:
                continue
            content.update(f"{file.relative_to(path).as_posix()}\0{self._of_file(file)}\n".encode())
        return content.hexdigest()

    def save(self) -> None:
        """Keep what was learned; a folder that cannot be written is no error."""
        if self._fresh and self._file.parent.is_dir():
            try:
                atomic.write_text(self._file, json.dumps(self._before | self._known))
            except OSError:
                return

    def _of_file(self, path: Path) -> str:
        facts = path.stat()
        name = f"{path.resolve()}|{facts.st_size}|{facts.st_mtime_ns}|{facts.st_ino}"
        if name not in self._known:
            self._known[name] = file_digest(path)
            self._fresh = True
        return self._known[name]
