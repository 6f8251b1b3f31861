"""The gate of a run's folder: what a run reads and makes is inside of it, whatever somebody put there.

Names that are read from files of a run go through `plain`; the folder itself goes through `check` before anything in it
is used. A link would lead out of it, and a pipe or a device in the place of a file would make its reader wait.
"""

import os
import stat
from collections.abc import Callable
from pathlib import Path

from spa_recipes.errors import DataError


def plain(name: str) -> str:
    """The name itself, if it is a relative one of something below a folder, such as `model/config.json`.

    Raises:
        ValueError: it is not, such as `../x`, `/x` or `a//b`.
    """
    if "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError(f"not the name of something below a folder: {name!r}")
    return name


def check(folder: Path, *, may_be_linked: Callable[[str], bool] = lambda name: False) -> None:
    """Refuse a folder of a run, or of a stage, in which a link, a pipe or a device is in the place of a file.

    In a folder of a run, this looks at the names at its top and at all that is below `stages`: other folders there are
    a person's, and nothing is read from them. A folder that is not there is fine.

    Args:
        may_be_linked: whether something at the top may be, or may have in it, a link.

    Raises:
        DataError: there is one, or the folder cannot be read.
    """
    for entry in _entries(folder):
        if not may_be_linked(entry.name):
            _refuse(entry)
            if entry.name == "stages":
                check_tree(Path(entry.path))


def check_tree(folder: Path) -> None:
    """Refuse a folder with a link, a pipe or a device anywhere in it, as `check` does."""
    if folder.is_symlink():
        raise _link(folder)
    folders = [folder]
    while folders:
        for entry in _entries(folders.pop()):
            _refuse(entry)
            if entry.is_dir(follow_symlinks=False):
                folders.append(Path(entry.path))


def no_link(path: str, flags: int) -> int:
    """An `opener` for `open` that refuses a link in the place of the file with an OSError."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except (FileNotFoundError, NotADirectoryError):  # no folder is there, or not any more
        return []
    except OSError as error:
        raise DataError(
            f"cannot be read ({error.strerror})",
            where=str(folder),
            fix="make the folder readable for yourself, or choose another --run-dir",
        ) from None


def _refuse(entry: os.DirEntry[str]) -> None:
    if entry.is_symlink():
        raise _link(Path(entry.path))
    try:
        mode = entry.stat(follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise DataError(
            "this is neither a file nor a folder, and a run has nothing else in it",
            where=entry.path,
            fix="delete it, or choose another --run-dir",
        )


def _link(path: Path) -> DataError:
    return DataError(
        f"this is a link to {path.readlink()}, and a run writes into its own folder only",
        where=str(path),
        fix="put the file or folder itself there, or choose another --run-dir",
    )
