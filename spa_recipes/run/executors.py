"""How stage processes are started. Executors differ in the command they build and in nothing that a stage can see."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from spa_recipes.plan import KINDS, Stage
from spa_recipes.recipe.schema import (
    AccelerateExecutor,
    Compute,
    Executor,
    ForkExecutor,
    LocalExecutor,
    RayExecutor,
    Sampling,
    SlurmExecutor,
    VllmBackend,
)
from spa_recipes.run.devices import only, visible_gpus
from spa_recipes.run.nodes import check_nodes
from spa_recipes.run.pool import Pool
from spa_recipes.run.processes import ForkServer, Running, Worker
from spa_recipes.run.ray_cluster import Tasks
from spa_recipes.run.slurm import Steps
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
    copies, each = backend.data_parallel_size, backend.tensor_parallel_size
    room = max(1, _gpus_for_copies(compute.executor) // each) if copies == "auto" else copies
    return VllmProcesses(compute.vllm_python or sys.executable, room, each)


def _gpus_for_copies(executor: Executor) -> int:
    """GPUs that a stage in shards may use, where the recipe leaves the number of workers to us."""
    if isinstance(executor, SlurmExecutor | RayExecutor):
        return executor.training_processes
    return len(visible_gpus())


class Cluster(Protocol):
    """What starts processes on the nodes of a cluster."""

    def slot(self, command: Sequence[str], log: Path, environment: Mapping[str, str], gpus: int) -> Running:
        """One process with so many GPUs to itself, on whichever node has room."""

    def gang(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> Running:
        """A process on each node."""


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
        self._cluster: Cluster | None = None
        if isinstance(settings, SlurmExecutor):
            self._cluster, self.max_restarts = Steps(settings), settings.max_restarts
        elif isinstance(settings, RayExecutor):
            self._cluster, self.max_restarts = Tasks(settings), settings.max_restarts

    def look_at_nodes(self, run: Path, stages: Sequence[Stage], compute: Compute) -> None:
        """Ask the nodes of a cluster what they are, before the first of these stages that needs them.

        Raises:
            RecipeError, TryAgainError: one of them cannot do a stage.
        """
        needed = [stage for stage in stages if KINDS[stage.kind].loads_model]
        if self._cluster is None or not needed:
            return
        assert isinstance(self._settings, SlurmExecutor | RayExecutor)
        wants_vllm = compute.vllm_python is None and any(vllm_processes_of(stage, compute) for stage in needed)
        check_nodes(self._cluster, self._settings, run, vllm=wants_vllm)

    def start(self, kind: str, spec: Path, log: Path, vllm: VllmProcesses | None = None) -> Running:
        """Start the processes of a stage, their output going to `log` and to logs beside it.

        Stages in shards run in a pool, and never under a launcher: vLLM starts processes of its own for the GPUs of a
        copy. It never forks from a process that has imported torch.
        """
        if isinstance(self._settings, ForkExecutor) and vllm is None:
            if self._server is None or not self._server.alive():
                self._server = ForkServer(log)
            if kind != "data":  # which needs no heavy library, and so need not wait for their import
                return self._server.start(spec, log)
        if vllm is not None:
            return self._in_shards(vllm, spec, log, {} if self._cluster else _vllm_environment())
        if KINDS[kind].takes_shards and not isinstance(self._settings, LocalExecutor | ForkExecutor):
            copies = VllmProcesses(sys.executable, self._settings.training_processes, self._gpus_each)
            return self._in_shards(copies, spec, log, {})
        command = _command(self._settings, kind, spec)
        if self._cluster is None or not KINDS[kind].loads_model:
            return Worker(command, log)
        assert isinstance(self._settings, SlurmExecutor | RayExecutor)
        return self._cluster.gang(command, log, _meeting(self._settings.nodes, log.parent))

    @property
    def _gpus_each(self) -> int:
        """GPUs of a process that samples or scores with transformers."""
        return 0 if isinstance(self._settings, SlurmExecutor | RayExecutor) and not self._settings.gpus_per_node else 1

    def _in_shards(self, workers: VllmProcesses, spec: Path, log: Path, environment: dict[str, str]) -> Running:
        """The process of a stage that is done in shards; if there is room for more, a pool, each with its own GPUs."""
        gpus = [] if self._cluster else visible_gpus()
        command = [workers.python, "-m", WORKER, str(spec)]

        def begin(name: str | None, slot: int) -> Running:
            own = environment if name is None else environment | {POOL: name}
            own_log = log if name is None else log.with_stem(f"{log.stem}-{name}")
            if self._cluster is not None:
                return self._cluster.slot(command, own_log, own, workers.gpus_each)
            if gpus and workers.copies > 1:
                own = own | only(gpus[slot * workers.gpus_each : (slot + 1) * workers.gpus_each])
            return Worker(command, own_log, own)

        if workers.copies == 1:
            return begin(None, 0)
        return Pool(begin, workers.copies, log.parent, restarts=self.max_restarts)

    def close(self) -> None:
        """Stop the fork server, if there is one."""
        if self._server is not None:
            self._server.stop()


def _command(settings: Executor, kind: str, spec: Path) -> list[str]:
    """The command line of a stage's process, or of the launcher that starts its processes."""
    if isinstance(settings, LocalExecutor | ForkExecutor) or not KINDS[kind].loads_model:
        return [sys.executable, "-m", WORKER, str(spec)]
    processes = settings.training_processes
    command = [sys.executable, "-m", LAUNCH, f"--num_processes={processes}"]
    if isinstance(settings, AccelerateExecutor) and settings.config_file is not None:
        command.append(f"--config_file={settings.config_file}")
    else:
        # The recipe says all, and a configuration of the user's own that it does not name says nothing.
        command += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
        if processes > 1:
            has_gpus = bool(visible_gpus()) if isinstance(settings, AccelerateExecutor) else settings.gpus_per_node > 0
            command.append("--multi_gpu" if has_gpus else "--cpu")
    return [*command, "--module", WORKER, str(spec)]


def _meeting(nodes: int, attempt: Path) -> dict[str, str]:
    """Environment of launchers that meet (see `rendezvous`); of one alone, nothing."""
    return {"SPA_NODES": str(nodes), "SPA_MEETING": str(attempt / "meeting.json")} if nodes > 1 else {}


def _vllm_environment() -> dict[str, str]:
    return {name: value for name, value in VLLM_LOOPBACK.items() if name not in os.environ}
