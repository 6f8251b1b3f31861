"""How much room files take. A file with several names (hard links) takes it once."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class File(NamedTuple):
    """A name of a file on disk.

    Attributes:
        inode: (device, number): equal for all names of the same file.
        size: bytes.
        names: how many names the file has, here or elsewhere.
    """

    path: Path
    inode: tuple[int, int]
    size: int
    names: int


def files(path: Path) -> Iterator[File]:
    """`path` itself, or all files below it. Links are not followed; what cannot be seen is left out."""
    found = [path] if not path.is_dir() or path.is_symlink() else _below(path)
    for file in found:
        try:
            facts = file.lstat()
        except OSError:
            continue
        yield File(file, (facts.st_dev, facts.st_ino), facts.st_size, facts.st_nlink)


def _below(folder: Path) -> Iterator[Path]:
    for root, _, names in os.walk(folder):
        yield from (Path(root, name) for name in names)


def inodes(path: Path) -> dict[tuple[int, int], int]:
    """Bytes of each file at or below `path`."""
    return {file.inode: file.size for file in files(path)}


def size(path: Path) -> int:
    """Bytes of all files at or below `path`, each counted once."""
    return sum(inodes(path).values())
