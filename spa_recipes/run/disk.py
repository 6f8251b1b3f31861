"""Free space on the disk: checked before a stage starts, and explained when it runs out during one."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from spa_recipes.errors import SpaError, TryAgainError, system_error
from spa_recipes.estimates import needs
from spa_recipes.plan import Plan, Stage
from spa_recipes.run.fit import hardware_for
from spa_recipes.state.stagedir import StageDir
from spa_recipes.units import human_bytes

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
_TORCH = ("PytorchStreamWriter failed writing", "unexpected pos ")
"""Texts of torch.save, which does not say why it could not write."""
_NUMBER = re.compile(r"\(os error (\d+)\)")
"""How safetensors names the error of the system."""
LITTLE = 256 * 1024 * 1024
"""Free bytes below which a disk counts as full when a library only says that it could not write."""


def free_bytes(path: Path) -> int:
    """Free space where `path` is or will be."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, says that something could not be written for want of room."""
    return any(
        (found := _number(link)) in _NO_ROOM or (found is None and any(words in str(link) for words in _TORCH))
        for link in _chain(error)
    )


def disk_error(error: BaseException, folder: Path, *, where: str, needed: int | None = None) -> SpaError | None:
    """What an error says of the system, in one line; None if it does not come from there.

    Args:
        folder: named where the error names no file.
        needed: estimate for the whole stage, in bytes.
    """
    if is_full(error):
        return full_disk(error, folder, where=where, needed=needed)
    number = _number(error)
    if number is None:
        return None
    cause = error if isinstance(error, OSError) else OSError(number, os.strerror(number))
    return system_error(cause, where=where, place=str(folder))


def full_disk(error: BaseException | None, folder: Path, *, where: str, needed: int | None = None) -> TryAgainError:
    """The error to raise after `is_full`, or for a disk with no room left: the path, what is free, what is needed.

    Args:
        folder: named where the error names no file.
        needed: estimate for the whole stage, in bytes.
    """
    numbers = {_number(link) for link in _chain(error)}
    names = [link.filename for link in _chain(error) if isinstance(link, OSError) and link.filename]
    path, free = names[0] if names else folder, free_bytes(folder)
    wanted = f"; the stage needs up to {human_bytes(needed)}" if needed else ""
    if errno.EDQUOT in numbers:
        what, room = f"the disk quota is used up: {path} could not be written", "make room in it"
    elif error is None or errno.ENOSPC in numbers or free < LITTLE:
        what, room = f"the disk is full: {path} could not be written, {human_bytes(free)} are free", "make room"
    else:
        reason = next((str(link).strip().splitlines()[0] for link in _chain(error) if str(link).strip()), "")
        what = f"a file in {path} could not be written ({reason}), although {human_bytes(free)} are free"
        room = "look for a quota, at `ulimit -f`, and for errors of the disk in `dmesg`; make room"
    return TryAgainError(
        f"{what}{wanted}",
        where=where,
        fix=f"{room} (`spa gc` may help), then run `spa resume` or the same command again; finished work is kept",
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _number(error: BaseException) -> int | None:
    """The number of an error of the system, whichever library tells it."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if told := _NUMBER.search(str(error)):
        return int(told[1])
    return next((number for number in _NO_ROOM if os.strerror(number) in str(error)), None)


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
    need = needs(stage, plan, hardware_for(plan.recipe))
    if need.disk is None and need.scratch is None:
        return None
    there = sum(path.stat().st_size for path in folder.work.rglob("*") if path.is_file())
    return max(0, (need.disk or 0) + (need.scratch or 0) - there)
