"""Errors that a user can cause or cure: one line each, with a documented exit code.

Exit codes: 0 ok; 1 a stage failed; 2 usage or recipe; 3 data; 4 the run is locked by another process;
5 the recipe changed under a resume; 75 try again (out of memory, network, disk full); 129, 130 or 143 when the command
was stopped by a closed terminal (SIGHUP), Ctrl-C or SIGTERM.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from spa_recipes import __version__
from spa_recipes.redaction import redacted


class SpaError(Exception):
    """Something went wrong that the user can understand: what, where, and what to do. It shows no secret.

    Args:
        what: the fact, without a final full stop.
        where: `file:line: key`, or `file, row 12`; empty where the fact has no place.
        fix: what to do about it, an imperative without a final full stop.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        what, where, fix = redacted(what), redacted(where), redacted(fix)
        self.what, self.where, self.fix = what, where, fix
        line = f"{where}: {what}" if where else what
        super().__init__(" ".join(f"{line}; {fix}".split()) if fix else " ".join(line.split()))

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.what, self.where, self.fix))


def _rebuild(kind: type[SpaError], what: str, where: str, fix: str) -> SpaError:
    return kind(what, where=where, fix=fix)


class StageError(SpaError):
    """A stage failed."""

    exit_code = 1


class RecipeError(SpaError):
    """The recipe or the command line is wrong."""

    exit_code = 2


class DataError(SpaError):
    """A dataset, a model folder or a row of one is wrong or missing."""

    exit_code = 3


class NewerVersionError(DataError):
    """A newer version of this package wrote a run; nothing in it is touched."""


class LockedError(SpaError):
    """Another process holds the run."""

    exit_code = 4


class RecipeChangedError(SpaError):
    """The recipe is not the one that the run was started with."""

    exit_code = 5


class TryAgainError(SpaError):
    """Memory or disk ran out, or the network failed: the same command may work later or with other settings."""

    exit_code = 75


_AGAIN = "run the same command again"
_DRIVE = f"see that the disk or the network drive works (`dmesg` may say more), then {_AGAIN}"
_PATH = "check the path"
_SYSTEM: dict[int, tuple[type[SpaError], str]] = {
    errno.ENOSPC: (TryAgainError, f"make room on the disk, then {_AGAIN}"),
    errno.EDQUOT: (TryAgainError, f"your quota is used up: delete something or ask for more, then {_AGAIN}"),
    errno.EFBIG: (DataError, "no file of that size is allowed there: raise `ulimit -f`, or use another disk"),
    errno.EMFILE: (TryAgainError, f"raise `ulimit -n`, then {_AGAIN}"),
    errno.ENFILE: (TryAgainError, f"close other programs, then {_AGAIN}"),
    errno.ENOMEM: (TryAgainError, f"close other programs, then {_AGAIN}"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), (DataError, "change its permissions, or choose another place")),
    errno.EROFS: (DataError, "choose a place that can be written"),
    **dict.fromkeys(
        (
            errno.ENOENT,
            errno.ENOTDIR,
            errno.EISDIR,
            errno.EEXIST,
            errno.ENOTEMPTY,
            errno.ELOOP,
            errno.ENAMETOOLONG,
            errno.EINVAL,
        ),
        (DataError, _PATH),
    ),
}
"""What to do about an error of the system, and whether it is the user's to mend (3) or may pass (75)."""


def system_error(error: OSError, *, where: str = "", place: str = "", fix: str = "") -> SpaError:
    """An error of the operating system in one line: the file, what the system says, and what to do.

    Args:
        where: stands in front of the file, such as the id of a stage.
        place: named where the error names no file.
        fix: what to do where it is the user's to mend; by default what fits the number of the error.
    """
    files = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    kind, remedy = _SYSTEM.get(error.errno or 0, (TryAgainError, _DRIVE))
    return kind(
        error.strerror or str(error).strip() or type(error).__name__,
        where=": ".join(part for part in (where, " -> ".join(files) or place) if part),
        fix=fix if fix and kind is DataError else remedy,
    )


def newer_version(field: str, where: str, version: str = "") -> NewerVersionError:
    """The error for a file of a run with a field that this version does not know.

    Args:
        version: that wrote the file, where that is known.
    """
    made_by = f"spa-recipes {version}, a newer version" if version else "a newer version of spa-recipes"
    return NewerVersionError(
        f"made by {made_by}; this is {__version__} and does not know `{field}`; nothing was changed",
        where=where,
        fix="upgrade spa-recipes, or choose another --run-dir",
    )


@contextmanager
def setting(key: str) -> Iterator[None]:
    """Put the setting that names a model or a file in front of the place of an error about it.

    Args:
        key: of the recipe, such as `judge.model_name_or_path`, or an option; empty where no setting names it.
    """
    try:
        yield
    except SpaError as error:
        where = ": ".join(part for part in (key, error.where) if part)
        raise type(error)(error.what, where=where, fix=error.fix) from error


DAMAGE = (OSError, ValueError, TypeError, KeyError, AttributeError)
"""What code that reads a folder of a run raises where a file has another form than it was written in."""

EXIT_CODES: dict[int, type[SpaError]] = {
    kind.exit_code: kind
    for kind in (StageError, RecipeError, DataError, LockedError, RecipeChangedError, TryAgainError)
}
