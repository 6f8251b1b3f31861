"""Real processes of a run without the seconds of their imports.

This process imports the libraries once. A `spa` command is a fork of it, and where that command starts
`python -m spa_recipes.run.forkserver` or `.worker`, the new process is a fork too instead of a fresh interpreter. All
else is the real thing: own processes, own sessions, pipes, locks and signals.
"""

import importlib
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spa_recipes.run.forkserver import preload
from tests.injection import faults

PROMISE_SECONDS = 30.0
"""Nothing of a run is alive this long after it was stopped."""


def load_libraries() -> None:
    """Import what commands and stages need, before the first `start`."""
    import pandas  # noqa: F401
    import pyarrow.parquet  # noqa: F401

    import spa_recipes.cli.app
    import spa_recipes.cli.summary
    import spa_recipes.plan
    import spa_recipes.run.worker

    preload()
    for kind in spa_recipes.plan.KINDS.values():
        importlib.import_module(f"spa_recipes.stages.{kind.module}")


class ForkingPopen(subprocess.Popen):  # type: ignore[type-arg]
    """`subprocess.Popen` that runs `python -m MODULE ARGUMENTS` of this package in a fork of this process."""

    def __init__(self, command: Sequence[str], *, env: Any = None, **options: Any) -> None:
        ours = len(command) > 2 and command[1] == "-m" and command[2].startswith("spa_recipes.run.")
        if not ours:
            super().__init__(command, env=env, **options)
            return
        sys.stdout.flush()
        sys.stderr.flush()
        super().__init__(command, preexec_fn=lambda: _become(command[2], command[3:], env), **options)
        faults.started_group(self.pid)


def _become(module: str, arguments: Sequence[str], environment: dict[str, str] | None) -> None:
    """Be the process of that module; never returns."""
    code = 1
    try:
        os.closerange(3, 1024)
        if environment is not None:
            os.environ.clear()
            os.environ.update(environment)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        code = _run(module, [module, *arguments])
    finally:
        os._exit(code)


def _run(module: str, arguments: list[str]) -> int:
    sys.argv = arguments
    try:
        importlib.import_module(module).main()
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


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
        subprocess.Popen = ForkingPopen  # type: ignore[assignment,misc]
        code = _run("spa_recipes.cli.app", ["spa", *arguments])
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
