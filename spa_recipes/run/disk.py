"""Free space on the disk: checked before a stage starts, and explained when it runs out during one."""

import errno
import shutil
from pathlib import Path

from spa_recipes.errors import TryAgainError
from spa_recipes.estimates import needs
from spa_recipes.plan import Plan, Stage
from spa_recipes.state.stagedir import StageDir
from spa_recipes.units import human_bytes

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
_WORDS = ("No space left on device", "Disk quota exceeded", "PytorchStreamWriter failed writing", "unexpected pos ")
"""Texts of errors without a number: the first two are of safetensors, the others of torch.save."""


def free_bytes(path: Path) -> int:
    """Free space where `path` is or will be."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, says that nothing more fits on the disk."""
    while error is not None:
        if (isinstance(error, OSError) and error.errno in _NO_ROOM) or any(words in str(error) for words in _WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


def full_disk(error: BaseException | None, folder: Path, *, where: str, needed: int | None = None) -> TryAgainError:
    """The error to raise after `is_full`, or for a disk with no room left: the path, what is free, what is needed.

    Args:
        folder: named where the error names no file.
        needed: estimate for the whole stage, in bytes.
    """
    path = error.filename if isinstance(error, OSError) and error.filename else folder
    wanted = f"; the stage needs up to {human_bytes(needed)}" if needed else ""
    return TryAgainError(
        f"the disk is full: {path} could not be written, {human_bytes(free_bytes(folder))} are free{wanted}",
        where=where,
        fix="make room (`spa gc` may help), then run `spa resume` or the same command again; finished work is kept",
    )


def room_needed(stage: Stage, plan: Plan, folder: StageDir, *, promised: int = 0) -> int | None:
    """Upper bound for the bytes that a stage will still write, None where no estimate is known.

    Args:
        promised: bytes that running stages will still write.

    Raises:
        TryAgainError: less than that is free.
    """
    missing = still_to_write(stage, plan, folder)
    if missing is None:
        return None
    free = free_bytes(folder.path)
    if missing + promised > free:
        others = f" beside {human_bytes(promised)} for the stages that run" if promised else ""
        raise TryAgainError(
            f"needs up to {human_bytes(missing)} on the disk{others} and {human_bytes(free)} are free; "
            "nothing was started",
            where=f"{stage.id}: {folder.path}",
            fix="make room (`spa gc` may help; `spa plan` says more), or set storage.checkpoints_while_training: 1",
        )
    return missing


def still_to_write(stage: Stage, plan: Plan, folder: StageDir) -> int | None:
    """Upper bound for the bytes that a stage will write, less what its work folder has; None if it is not known."""
    need = needs(stage, plan)
    if need.disk is None and need.scratch is None:
        return None
    there = sum(path.stat().st_size for path in folder.work.rglob("*") if path.is_file())
    return max(0, (need.disk or 0) + (need.scratch or 0) - there)
