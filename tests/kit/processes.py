"""Processes of a run that a test starts, watches and stops."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

PATIENCE = 120.0


def run_script(script: Path, *arguments: str | Path, processes: int = 1, seconds: float = 300.0) -> None:
    """Run a script that imports what tests share, in its folder, in so many processes that meet on this machine."""
    launch = ["-m", "spa_recipes.run.launch", "--cpu", "--num_processes", str(processes), "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    command = [sys.executable, *(launch if processes > 1 else []), str(script), *map(str, arguments)]
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": root}
    said = script.with_suffix(f".{processes}.log")
    with said.open("w") as log:  # its input stays open: a launch ends with who started it
        process = subprocess.Popen(
            command, cwd=script.parent, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log
        )
    assert process.wait(timeout=seconds) == 0, said.read_text()


def wait_for(condition: Callable[[], object], seconds: float = PATIENCE, *, every: float = 0.005) -> None:
    """Wait until it holds; look every so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(every)


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
