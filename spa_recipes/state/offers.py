"""What a file system may not offer: links, modes, fsync. A run goes on without them, and says so once."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

NOT_OFFERED = frozenset({errno.EPERM, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOTTY})
"""Numbers by which a file system says that it does not have what it was asked for."""


@contextmanager
def where_offered() -> Iterator[None]:
    """Do something that a file system may not offer; any other error of it is raised."""
    try:
        yield
    except OSError as error:
        if error.errno not in NOT_OFFERED:
            raise


def missing(folder: Path) -> list[str]:
    """What the file system of a run's folder does not offer, and what that means: found out by trying."""
    probe = folder / f".probe.{os.getpid()}.tmp"
    link = folder / f".final.probe.{os.getpid()}.tmp"  # where a killed process may leave a link

    trials: list[tuple[Callable[[], object], str]] = [
        (lambda: probe.chmod(0o600), "no modes of files, so it decides itself who may read them"),
        (lambda: _sync(folder), "no fsync, so a power cut may cost finished work"),
        (lambda: link.symlink_to(probe.name), "no symbolic links, so final/ holds a copy of the model"),
        (lambda: link.hardlink_to(probe), "no hard links, so what is taken over from other runs is copied"),
    ]
    found = []
    try:
        probe.touch()
        for trial, words in trials:
            try:
                trial()
            except OSError as error:
                if error.errno not in NOT_OFFERED:
                    raise
                found.append(words)
            link.unlink(missing_ok=True)
    finally:
        for path in (link, probe):
            path.unlink(missing_ok=True)
    return found


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
