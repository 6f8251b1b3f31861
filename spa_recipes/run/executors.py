"""How stage processes are started. Executors differ in the command they build and in nothing that a stage can see."""

import os
import sys
from pathlib import Path
from typing import NamedTuple

from spa_recipes.plan import KINDS, Stage
from spa_recipes.recipe.schema import AccelerateExecutor, Compute, Executor, ForkExecutor, Sampling, VllmBackend
from spa_recipes.run.devices import only, visible_gpus
from spa_recipes.run.pool import Pool
from spa_recipes.run.processes import ForkServer, Running, Worker
from spa_recipes.stages.context import POOL

WORKER = "spa_recipes.run.worker"
LAUNCH = "spa_recipes.run.launch"
VLLM_LOOPBACK = {"VLLM_HOST_IP": "127.0.0.1"} | (
    {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
)
"""Environment of vLLM, all of whose processes are on this machine: where they meet. What the user sets stays."""


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
        max_restarts: how many times a stage is begun again within a run after a process of it was lost.
    """

    room = 1
    max_restarts = 0

    def __init__(self, settings: Executor) -> None:
        self._settings = settings
        self._server: ForkServer | None = None

    def start(self, kind: str, spec: Path, log: Path, vllm: VllmProcesses | None = None) -> Running:
        """Start the processes of a stage, their output going to `log` and to logs beside it.

        vLLM starts processes of its own for the GPUs of a copy, so its stages never run under a launcher, and never
        fork from a process that has imported torch.
        """
        if isinstance(self._settings, ForkExecutor) and vllm is None:
            if self._server is None or not self._server.alive():
                self._server = ForkServer(log)
            if kind != "data":  # which needs no heavy library, and so need not wait for their import
                return self._server.start(spec, log)
        if vllm is not None:
            return _shard_workers(vllm.python, vllm.copies, vllm.gpus_each, spec, log, _vllm_environment())
        if isinstance(self._settings, AccelerateExecutor) and KINDS[kind].takes_shards:
            return _shard_workers(sys.executable, self._settings.num_processes, 1, spec, log, {})
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


def _shard_workers(
    python: str, size: int, gpus_each: int, spec: Path, log: Path, environment: dict[str, str]
) -> Running:
    """The process of a stage that is done in shards; if there is room for more, a pool, each seeing its own GPUs."""
    gpus = visible_gpus()

    def begin(name: str | None, slot: int) -> Worker:
        mine = gpus[slot * gpus_each : (slot + 1) * gpus_each]
        own = only(mine) if gpus and size > 1 else {}
        if name is None:
            return Worker([python, "-m", WORKER, str(spec)], log, environment | own)
        own_log = log.with_stem(f"{log.stem}-{name}")
        return Worker([python, "-m", WORKER, str(spec)], own_log, environment | own | {POOL: name})

    return begin(None, 0) if size == 1 else Pool(begin, size, log.parent, restarts=0)


def _vllm_environment() -> dict[str, str]:
    return {name: value for name, value in VLLM_LOOPBACK.items() if name not in os.environ}
