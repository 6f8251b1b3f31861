"""Errors that a user can cause or cure: one line each, with a documented exit code.

Exit codes: 0 ok; 1 a stage failed; 2 usage or recipe; 3 data; 4 the run is locked by another process;
5 the recipe changed under a resume; 75 try again (out of memory, network, disk full); 129, 130 or 143 when the command
was stopped by a closed terminal (SIGHUP), Ctrl-C or SIGTERM.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

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


class LockedError(SpaError):
    """Another process holds the run."""

    exit_code = 4


class RecipeChangedError(SpaError):
    """The recipe is not the one that the run was started with."""

    exit_code = 5


class TryAgainError(SpaError):
    """Memory or disk ran out, or the network failed: the same command may work later or with other settings."""

    exit_code = 75


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
