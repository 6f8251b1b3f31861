"""Writes that either happened or did not: temporary name, fsync, rename."""

import json
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from spa_recipes.state import inside
from spa_recipes.state.offers import where_offered

TEMPORARY = re.compile(r"\..+\.([\w-]*-[0-9a-f]{32}|\d+)\.tmp")
"""Names of files that a killed writer may leave; earlier versions put a number in the place of host and uuid."""

LONGEST_NAME = 150
"""Bytes that a temporary name keeps of a file's own, so that both fit the file system."""


def temporary_name(path: Path) -> Path:
    """A new name beside `path`. Process ids are not enough: hosts and containers that share a folder have the same."""
    host = re.sub(r"[^\w-]", "-", os.uname().nodename)[:32]
    name = os.fsdecode(os.fsencode(path.name)[:LONGEST_NAME])
    return path.with_name(f".{name}.{host}-{uuid.uuid4().hex}.tmp")


def fsync(descriptor: int) -> None:
    """Flush a file to the disk, where the file system offers that."""
    with where_offered():
        os.fsync(descriptor)


def fsync_dir(folder: Path) -> None:
    """Make renames inside `folder` survive a power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it that are not there, each so that it survives a power loss."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    fsync_dir(folder.parent)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file to write that becomes `path` at the end; after an error it is gone and its room free again.

    Its name is a new one, so that nobody's file or link is in its place.

    Raises:
        OSError: as it came, with the name of the file where the system gave none.
    """
    temporary = temporary_name(path)
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666))
        yield temporary
        temporary.replace(path)
        fsync_dir(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    with replacing(path) as temporary, temporary.open("wb") as handle:
        handle.write(content)
        handle.flush()
        fsync(handle.fileno())


def write_text(path: Path, content: str) -> None:
    """`write_bytes` for UTF-8 text."""
    write_bytes(path, content.encode())


def write_json(path: Path, value: Any) -> None:
    """Write JSON for people: indented, in the given order of keys."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def append_line(path: Path, line: str) -> None:
    """Append a line to a text file; one that a power loss cut off before it stays on a line of its own."""
    with open(path, "ab+", opener=inside.no_link) as handle:
        if handle.tell():
            handle.seek(-1, os.SEEK_END)
            line = line if handle.read(1) == b"\n" else "\n" + line
        handle.write(line.encode() + b"\n")


def fsync_tree(folder: Path) -> None:
    """Flush every file and folder below `folder`, so that a later rename of it cannot commit empty files."""
    for root, _, files in os.walk(folder):
        for name in files:
            with (Path(root) / name).open("rb") as handle:
                fsync(handle.fileno())
        fsync_dir(Path(root))


def move_aside(path: Path, folder: Path) -> Path:
    """Keep a damaged file or folder for inspection: move it into `folder` under a name that is free there."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    while (aside := folder / f"{path.name}.damaged-{number}").exists():
        number += 1
    path.rename(aside)
    return aside


def umask() -> int:
    """The permissions that this process takes from new files; the system only tells by setting it."""
    current = os.umask(0o077)
    os.umask(current)
    return current


def apply_umask(folder: Path) -> None:
    """Give every file below `folder` the mode that the umask asks for.

    Some writers leave another one: safetensors makes its files readable for their owner only.
    """
    mode = 0o666 & ~umask()
    for root, _, files in os.walk(folder):
        for name in files:
            with where_offered():
                (Path(root) / name).chmod(mode)
