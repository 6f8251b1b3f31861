"""Reading from a disk that fails for a moment. Damaged is what was read and is different, never what cannot be read."""

import errno
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG
from typing import TypeVar

from spa_recipes.errors import TryAgainError

T = TypeVar("T")

PAUSES = (0.2, 0.8, 2.0)
"""Seconds before each further try."""

NOT_THERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.ENAMETOOLONG})
"""Errors that say something of the file, and nothing of the disk: no file of this name is there."""

_patience = [True]
"""Whether this process still waits. A disk that did not come back is not waited for again at each of its files."""


def patiently(read: Callable[[Path], T], path: Path) -> T:
    """`read(path)`, tried again after pauses while the disk or the network drive fails.

    Raises:
        OSError: there is no such file (`NOT_THERE`), or a library says that it is damaged.
        TryAgainError: it still cannot be read.
        ValueError: as `read` raises it.
    """
    pauses = list(PAUSES) if _patience[0] else []
    while True:
        try:
            return read(path)
        except OSError as error:
            if error.errno is None or error.errno in NOT_THERE:
                raise
            if not pauses:
                _patience[0] = False
                raise TryAgainError(
                    f"cannot be read ({error.strerror or error}); nothing was changed or set aside",
                    where=str(path),
                    fix="see that the disk or the network drive works and that you may read the file, then run the "
                    "same command again",
                ) from error
            time.sleep(pauses.pop(0))


def size_of(path: Path) -> int | None:
    """Bytes of a regular file; None if there is none.

    Raises:
        TryAgainError: nobody can tell.
    """
    try:
        facts = patiently(os.stat, path)
    except OSError:
        return None
    return facts.st_size if S_ISREG(facts.st_mode) else None


def look_again(folder: Path) -> None:
    """Make a network drive look again: it remembers for a while that a file was not there, until a folder is read."""
    with suppress(OSError), os.scandir(folder) as entries:
        next(entries, None)
