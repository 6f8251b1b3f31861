"""How stage processes are started. Executors differ in the command they build and in nothing that a stage can see."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple, Protocol

from spa_recipes.plan import KINDS, Stage
from spa_recipes.recipe.schema import AccelerateExecutor, Compute, Executor, ForkExecutor, Sampling, VllmBackend
from spa_recipes.run.devices import only, visible_gpus
from spa_recipes.stages.context import RANK, WORLD_SIZE

WORKER = "spa_recipes.run.worker"
LAUNCH = "spa_recipes.run.launch"
GRACE_SECONDS = 10.0
LOG_ENCODING = {"PYTHONIOENCODING": "utf-8:backslashreplace"}
"""Environment of a process whose output goes to a log: no text that it prints ends it."""
VLLM_LOOPBACK = {"VLLM_HOST_IP": "127.0.0.1"} | (
    {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
)
"""Environment of vLLM, all of whose processes are on this machine: where they meet. What the user sets stays."""
SERVER_LOG = "forkserver.log"
SERVER_LOG_BYTES = 16 * 1024


class Running(Protocol):
    """A stage process that was started."""

    def poll(self) -> int | None:
        """Exit code, None while it runs."""

    def stop(self) -> None:
        """End it and all its children; returns when they are gone."""


class VllmProcesses(NamedTuple):
    """The processes of a stage that samples with vLLM.

    Attributes:
        python: of the environment that has vLLM.
        copies: processes, each with a copy of the model.
        gpus_each: GPUs that a copy has to itself.
    """

    python: str
    copies: int
    gpus_each: int


def vllm_processes_of(stage: Stage, compute: Compute) -> VllmProcesses | None:
    """What a stage needs that samples with vLLM; None for any other."""
    sampling = stage.settings.get("sampling")
    if not isinstance(sampling, Sampling) or not isinstance(sampling.backend, VllmBackend):
        return None
    backend = sampling.backend
    return VllmProcesses(
        compute.vllm_python or sys.executable, backend.data_parallel_size, backend.tensor_parallel_size
    )


class Executors:
    """Starts stages as the recipe says; keeps the fork server alive between stages.

    Attributes:
        room: how many stages may run at a time. All executors of this machine have room for one: each stage may use
            every GPU and all memory.
    """

    room = 1

    def __init__(self, settings: Executor) -> None:
        self._settings = settings
        self._server: ForkServer | None = None

    def start(self, kind: str, spec: Path, log: Path, vllm: VllmProcesses | None = None) -> Running:
        """Start the process of a stage, its output going to `log`; with `vllm` one process for each copy of the model.

        vLLM starts processes of its own for the GPUs of a copy, so its stages never run under a launcher, and never
        fork from a process that has imported torch.
        """
        if vllm is not None:
            return _vllm_workers(vllm, spec, log)
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
    if not isinstance(settings, AccelerateExecutor) or not KINDS[kind].loads_model:
        return [sys.executable, "-m", WORKER, str(spec)]
    command = [sys.executable, "-m", LAUNCH, f"--num_processes={settings.num_processes}"]
    if settings.config_file is not None:
        command.append(f"--config_file={settings.config_file}")
    elif settings.num_processes > 1:
        command.append("--multi_gpu" if visible_gpus() else "--cpu")
    return [*command, "--module", WORKER, str(spec)]


def _vllm_workers(vllm: VllmProcesses, spec: Path, log: Path) -> "Running":
    """A worker per copy of the model; with several of them each has its rank and sees its own GPUs only."""
    command = [vllm.python, "-m", WORKER, str(spec)]
    here = {name: value for name, value in VLLM_LOOPBACK.items() if name not in os.environ}
    if vllm.copies == 1:
        return Worker(command, log, here)
    gpus = visible_gpus()
    workers = []
    for rank in range(vllm.copies):
        mine = gpus[rank * vllm.gpus_each : (rank + 1) * vllm.gpus_each]
        ranks = {RANK: str(rank), WORLD_SIZE: str(vllm.copies)}
        workers.append(Worker(command, log, here | ranks | (only(mine) if gpus else {})))
    return Workers(workers)


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
    """A process group of its own, tied to this process by a pipe."""

    def __init__(self, command: list[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=process_environment({**LOG_ENCODING, **(environment or {})}),
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

    def stop(self) -> None:
        """SIGTERM to the group, SIGKILL to what is left after a grace period."""
        _end_group(self._process)


class Workers:
    """Several processes that do one stage: done when all are, failed as soon as one is."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._workers = workers

    def poll(self) -> int | None:
        """Exit code of the first that failed, 0 when all ended well, None while they run."""
        codes = [worker.poll() for worker in self._workers]
        failed = next((code for code in codes if code), None)
        if failed is not None:
            self.stop()
            return failed
        return None if None in codes else 0

    def stop(self) -> None:
        """End them all."""
        for worker in self._workers:
            worker.stop()


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
