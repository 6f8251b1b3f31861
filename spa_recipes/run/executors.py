"""How stage processes are started. Executors differ in the command they build, and in nothing that a stage can see."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Protocol

from spa_recipes.plan import HEAVY_KINDS
from spa_recipes.recipe.schema import AccelerateExecutor, Executor, ForkExecutor

WORKER = "spa_recipes.run.worker"
GRACE_SECONDS = 10.0


class Running(Protocol):
    """A stage process that was started."""

    def poll(self) -> int | None:
        """Exit code, None while it runs."""

    def stop(self) -> None:
        """End it and all its children; returns when they are gone."""


class Executors:
    """Starts stages as the recipe says; keeps the fork server alive between stages."""

    def __init__(self, settings: Executor) -> None:
        self._settings = settings
        self._server: ForkServer | None = None

    def start(self, kind: str, spec: Path, log: Path) -> Running:
        """Start the process of a stage, its output going to `log`."""
        if isinstance(self._settings, ForkExecutor):
            if self._server is None or not self._server.alive():
                self._server = ForkServer(log)
            if kind != "data":  # which needs no heavy library, and so need not wait for their import
                return self._server.start(spec, log)
        return Worker(_command(self._settings, kind, spec), log)

    def close(self) -> None:
        """Stop the fork server, if there is one."""
        if self._server is not None:
            self._server.stop()


def _command(settings: Executor, kind: str, spec: Path) -> list[str]:
    """The command line of a stage's process."""
    if not isinstance(settings, AccelerateExecutor) or kind not in HEAVY_KINDS:
        return [sys.executable, "-m", WORKER, str(spec)]
    command = [sys.executable, "-m", "accelerate.commands.launch", f"--num_processes={settings.num_processes}"]
    if settings.config_file is not None:
        command.append(f"--config_file={settings.config_file}")
    elif settings.num_processes > 1:
        command.append("--multi_gpu" if has_nvidia_driver() else "--cpu")
    return [*command, "--module", WORKER, str(spec)]


def has_nvidia_driver() -> bool:
    """Whether this machine has a driver for GPUs, without importing torch."""
    return Path("/proc/driver/nvidia/version").exists()


class Worker:
    """A process group of its own, tied to this process by a pipe."""

    def __init__(self, command: list[str], log: Path) -> None:
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )

    def poll(self) -> int | None:
        """Exit code, None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """SIGTERM to the group, SIGKILL to what is left after a grace period."""
        _end_group(self._process)


class ForkServer:
    """Client of `spa_recipes.run.forkserver`."""

    def __init__(self, log: Path) -> None:
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "spa_recipes.run.forkserver"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
                env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
            )
        self._exit_code: int | None = None

    def alive(self) -> bool:
        """Whether the server can take a stage."""
        return self._process.poll() is None

    def start(self, spec: Path, log: Path) -> Running:
        """Ask for a stage; one at a time."""
        self._exit_code = None
        with contextlib.suppress(BrokenPipeError):
            pipe = _pipe(self._process.stdin)
            pipe.write(json.dumps({"spec": str(spec), "log": str(log)}).encode() + b"\n")
            pipe.flush()
        return self

    def poll(self) -> int | None:
        """Exit code of the current stage, None while it runs; 1 if the server itself died."""
        if self._exit_code is not None:
            return self._exit_code
        output = _pipe(self._process.stdout)
        if select.select([output], [], [], 0)[0]:
            answer = output.readline()  # one line per stage, so nothing can hide in the buffer
            self._exit_code = int(json.loads(answer)["exit"]) if answer else 1
        return self._exit_code

    def stop(self) -> None:
        """End the server and its child."""
        _end_group(self._process)


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def _end_group(process: subprocess.Popen[bytes]) -> None:
    for sign, patience in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, GRACE_SECONDS)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, sign)
        end = time.monotonic() + patience
        while time.monotonic() < end and _group_alive(process):
            time.sleep(0.02)
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
