"""Writes that either happened or did not: temporary name, fsync, rename."""

import json
import os
from pathlib import Path
from typing import Any


def fsync_dir(folder: Path) -> None:
    """Make renames inside `folder` survive a power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())
    temporary.replace(path)
    fsync_dir(path.parent)


def write_text(path: Path, content: str) -> None:
    """`write_bytes` for UTF-8 text."""
    write_bytes(path, content.encode())


def write_json(path: Path, value: Any) -> None:
    """Write JSON for people: indented, in the given order of keys."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def fsync_tree(folder: Path) -> None:
    """Flush every file and folder below `folder`, so that a later rename of it cannot commit empty files."""
    for root, _, files in os.walk(folder):
        for name in files:
            with (Path(root) / name).open("rb") as handle:
                os.fsync(handle.fileno())
        fsync_dir(Path(root))
