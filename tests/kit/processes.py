"""Processes of a run that a test starts, watches and stops."""

import time
from collections.abc import Callable
from pathlib import Path

PATIENCE = 120.0


def wait_for(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Wait until it holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.005)


def processes_of(folder: Path) -> list[int]:
    """Processes that work in a folder (Linux); every process of a run does."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cwd").readlink() == folder.resolve():
                found.append(int(entry.name))
        except OSError:
            continue
    return sorted(found)


def stopped_in(folder: Path) -> list[int]:
    """Those that a signal has stopped."""
    return [pid for pid in processes_of(folder) if _state(pid) == "T"]


def alive(pid: int) -> bool:
    """Whether a process runs (Linux)."""
    return _state(pid) not in ("Z", "")


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
