"""Processes of a run: how they are started, watched and ended, with all that they started."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import IO, Protocol

GRACE_SECONDS = 10.0
LOG_ENCODING = {"PYTHONIOENCODING": "utf-8:backslashreplace"}
"""Environment of a process whose output goes to a log: no text that it prints ends it."""
SERVER_LOG = "forkserver.log"
SERVER_LOG_BYTES = 16 * 1024


class Running(Protocol):
    """A stage process that was started."""

    def poll(self) -> int | None:
        """Exit code, None while it runs."""

    def stop(self) -> None:
        """End it and all its children; returns when they are gone."""


def process_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a Python process that is started here: it imports nothing from the current folder.

    Python would import from there whatever has the name of a module, and a recipe may lie among any files. What the
    user names in PYTHONPATH stays; an empty part of it, as `export PYTHONPATH=lib:$PYTHONPATH` leaves behind, would
    mean the current folder, too.
    """
    environment = {**os.environ, **(more or {}), "PYTHONSAFEPATH": "1"}
    if "PYTHONPATH" in environment:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, environment["PYTHONPATH"].split(os.pathsep)))
    return environment


class Worker:
    """A process group of its own, tied to this process by a pipe.

    Args:
        command: the program and its arguments.
        log: gets its output.
        environment: beside this process's own.
        without: variables that it does not get.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
        *,
        without: Container[str] = (),
    ) -> None:
        given, arguments = process_environment({**LOG_ENCODING, **(environment or {})}), list(command)
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={name: value for name, value in given.items() if name not in without},
            )
        self._swept = False

    def poll(self) -> int | None:
        """Exit code, None while it runs."""
        code = self._process.poll()
        if code is not None and not self._swept:
            # A stage that was killed leaves its children, and an engine among them would keep its GPU. Only once:
            # while other workers of the stage go on, the system may give the group's number to somebody else.
            self._swept = True
            _sweep(self._process)
        return code

    def end_input(self, patience: float) -> None:
        """End its input, with which a stage ends wherever it runs, and wait so many seconds for its end."""
        _close(self._process)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)

    def stop(self) -> None:
        """SIGTERM to the group, SIGKILL to what is left after a grace period."""
        _end_group(self._process)


class ForkServer:
    """Client of `spa_recipes.run.forkserver`.

    Args:
        log: of the first stage; the server's own log stands beside it.
    """

    def __init__(self, log: Path) -> None:
        self._own_log, self._log = log.with_name(SERVER_LOG), log
        with self._own_log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "spa_recipes.run.forkserver"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
                env=process_environment({**LOG_ENCODING, "CUDA_VISIBLE_DEVICES": ""}),
            )
        self._exit_code: int | None = None

    def alive(self) -> bool:
        """Say whether the server can take a stage."""
        return self._process.poll() is None

    def start(self, spec: Path, log: Path) -> Running:
        """Ask for a stage; the server takes one at a time."""
        self._exit_code, self._log = None, log
        with contextlib.suppress(BrokenPipeError):
            pipe = _pipe(self._process.stdin)
            pipe.write(json.dumps({"spec": str(spec), "log": str(log)}).encode() + b"\n")
            pipe.flush()
        return self

    def poll(self) -> int | None:
        """Return the exit code of the current stage: None while it runs. If the server itself died, it is its own."""
        if self._exit_code is not None:
            return self._exit_code
        output = _pipe(self._process.stdout)
        if select.select([output], [], [], 0)[0]:
            answer = output.readline()  # the server writes one line per stage, so the buffer hides none
            self._exit_code = int(json.loads(answer)["exit"]) if answer else self._own_end()
        return self._exit_code

    def _own_end(self) -> int:
        """The exit code of the server, which is no more; the stage's log gets the end of the server's."""
        with contextlib.suppress(OSError):
            content = self._own_log.read_bytes()[-SERVER_LOG_BYTES:]
            with self._log.open("ab") as log:
                log.write(content)
        try:
            return self._process.wait(GRACE_SECONDS) or 1
        except subprocess.TimeoutExpired:
            return 1
        finally:
            _sweep(self._process)

    def stop(self) -> None:
        """End the server and its child."""
        _end_group(self._process)


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def _sweep(process: subprocess.Popen[bytes]) -> None:
    """End what a process left that is no more: its group, and with their input the processes of a launcher.

    torch's launcher puts each of them into a group of its own.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    _close(process)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    for sign, patience in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, GRACE_SECONDS)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, sign)
        end = time.monotonic() + patience
        while time.monotonic() < end and _group_alive(process):
            time.sleep(0.02)
    _close(process)


def _close(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def _group_alive(process: subprocess.Popen[bytes]) -> bool:
    process.poll()  # reap the leader, which would count as alive otherwise
    try:
        os.killpg(process.pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True
