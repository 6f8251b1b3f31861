"""Writes down where a stage stands when it has made no progress for a time, even if no Python code runs any more."""

import faulthandler
import os
from pathlib import Path

STACK = "stack"
"""Beginning of the names of the files with the stacks of an attempt, one per process of the stage."""


class Watchdog:
    """Has the stacks of this process's threads written unless it is fed in time: empty while there is progress.

    A thread of C does it (`faulthandler.dump_traceback_later`), so a library that spins or a file system that hangs
    cannot prevent it. There is one in a process.
    """

    def __init__(self, attempt: Path, process: str, seconds: float) -> None:
        self._seconds = seconds
        self._path = attempt / f"{STACK}-{process}.txt"
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        self.feed()

    def feed(self) -> None:
        """There is progress: wait from now on."""
        if os.fstat(self._file).st_size:
            os.ftruncate(self._file, 0)
        faulthandler.dump_traceback_later(self._seconds, file=self._file)

    def end(self) -> None:
        """Watch no longer; leaves no empty file."""
        faulthandler.cancel_dump_traceback_later()
        if not os.fstat(self._file).st_size:
            self._path.unlink(missing_ok=True)
        os.close(self._file)
