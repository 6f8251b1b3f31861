"""Processes of a run that is watched by `faults`; none of them waits for imports."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.injection import faults
from tests.kit.forked import ForkingPopen, run_module
from tests.kit.processes import processes_of

PROMISE_SECONDS = 30.0
"""Nothing of a run is alive this long after it was stopped."""


class WatchedPopen(ForkingPopen):
    """Tells the faults which process groups a runner started."""

    def __init__(self, command: Sequence[str], **options: Any) -> None:
        super().__init__(command, **options)
        if self.forked:
            faults.started_group(self.pid)


def start(
    folder: Path,
    arguments: Sequence[str],
    log: Path,
    notes: Path,
    armed: Sequence[faults.Fault],
    *,
    fresh: bool = False,
) -> int:
    """Start `spa ARGUMENTS` in a folder, its output going to `log`; returns its process id.

    A `fresh` one is a new interpreter like all that it starts: it takes the time to import, and no notes.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        for number, target in ((0, os.devnull), (1, log), (2, log)):
            descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            os.dup2(descriptor, number)
        os.closerange(3, 1024)
        os.environ |= {"HF_HUB_OFFLINE": "1", "NO_COLOR": "1", "COLUMNS": "200"}
        if fresh:
            os.execv(sys.executable, [sys.executable, "-m", "spa_recipes.cli", *arguments])
        faults.install(folder, notes, armed)
        subprocess.Popen = WatchedPopen  # type: ignore[assignment,misc]
        code = run_module("spa_recipes.cli.app", ["spa", *arguments])
    finally:
        os._exit(code)


def wait(pid: int, seconds: float) -> int | None:
    """Exit code (negative: signal) of a child, None if it is still alive after that time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        finished, status = os.waitpid(pid, os.WNOHANG)
        if finished:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return None


def seconds_until_gone(folder: Path) -> float | None:
    """How long processes of the run were still there; None if longer than promised, and then they are ended."""
    begin = time.monotonic()
    while left := processes_of(folder):
        if time.monotonic() - begin > PROMISE_SECONDS:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            return None
        time.sleep(0.01)
    return time.monotonic() - begin
