"""A stage that makes no progress: what is said of it, from the files of its attempt."""

import re
import time
from contextlib import suppress
from pathlib import Path

from spa_recipes.errors import DAMAGE
from spa_recipes.run.progressfile import Progress, progress_files
from spa_recipes.state.reading import read_json
from spa_recipes.state.watchdog import STACK
from spa_recipes.units import human_seconds

FRAMES_SHOWN = 4
STACK_PATIENCE = 30.0
"""Seconds that a process has, after the time is over, to write where it stands."""

LARGEST_STACK = 1 << 20
"""Bytes that are read of a stack; a process with a thousand threads writes less."""

_FRAME = re.compile(r'^  File "(.*)", line (\d+) in (.+)$')


class Stall:
    """Watches over the progress of an attempt. It has its own clock, since that of the system may jump."""

    def __init__(self, attempt: Path, minutes: float | None) -> None:
        self._attempt, self._minutes = attempt, minutes
        self._stack_size = 0
        self.over()

    def over(self) -> None:
        """There is progress."""
        self._begin, self._told = time.monotonic(), False

    def news(self) -> str | None:
        """What is to be said now: once for each time without progress, when the stack is there and whole."""
        seconds = time.monotonic() - self._begin
        if self._minutes is None or self._told or seconds < self._minutes * 60:
            return None
        before, self._stack_size = self._stack_size, sum(path.stat().st_size for path in _stacks(self._attempt))
        is_whole = 0 < self._stack_size == before
        if not is_whole and seconds < self._minutes * 60 + STACK_PATIENCE:
            return None
        self._told = True
        return stall_line(self._attempt, seconds)


def stalled(attempt: Path) -> str | None:
    """What `spa status` says of a running attempt that makes no progress; None if it makes some."""
    seconds = idle_seconds(attempt)
    return None if seconds is None else stall_line(attempt, seconds)


def idle_seconds(attempt: Path) -> float | None:
    """For how long a running attempt has made no progress; None where its recipe expects that, or nobody can tell."""
    with suppress(*DAMAGE):
        minutes = read_json(attempt / "spec.json")["runtime"]["compute"]["stall_minutes"]
        signs = [attempt / "spec.json", *progress_files(attempt)]
        seconds = time.time() - max(path.stat().st_mtime for path in signs)
        return seconds if minutes is not None and seconds >= minutes * 60 else None
    return None


def _stacks(attempt: Path) -> list[Path]:
    """The files with the stacks of a stage that makes no progress, by rank; empty while it makes some."""
    return sorted(path for path in attempt.glob(f"{STACK}-*.txt") if path.is_file() and path.stat().st_size)


def stall_line(attempt: Path, seconds: float) -> str:
    """What is said of a stage without progress for `seconds`: its last step, and where its first process stands."""
    line = f"no progress for {human_seconds(seconds)}; last: {_last_step(attempt)}"
    found = _stacks(attempt)
    if not found:
        return f"{line}; its process has not said where it stands; see {attempt / 'worker.log'}"
    return f"{line}; it stands in {_frames(found[0])}; all of it in {found[0]}"


def _last_step(attempt: Path) -> str:
    step = Progress(attempt).news().step
    return f"{step['done']} of {step['total']} {step['unit']}" if step else "nothing yet"


def _frames(stack: Path) -> str:
    """The innermost calls of the main thread, which faulthandler writes last."""
    with stack.open("rb") as handle:
        text = handle.read(LARGEST_STACK).decode(errors="replace")
    calls = list(filter(None, map(_FRAME.match, text.rpartition("Thread 0x")[2].splitlines())))
    shown = [f"{call[3]} ({Path(call[1]).name}:{call[2]})" for call in calls[:FRAMES_SHOWN]]
    return " < ".join(shown) or "no Python code"
