"""Slurm: the driver runs inside a job, and stages that load a model are its steps.

A step is started by `srun`, which is to the nodes of the job what a process is to this machine: it passes on output and
signals, and the end of its input, with which stages end (see `lifeline`).
"""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from spa_recipes.errors import RecipeError
from spa_recipes.recipe.schema import SlurmExecutor
from spa_recipes.run.processes import Running, Worker

JOB = "SLURM_JOB_ID"
STEP_SECONDS = 4.0
"""Seconds that the processes of a step have to end once their input has ended."""
_MEMORY = re.compile(r"(?:Alloc)?TRES=\S*?\bmem=([\d.]+)([KMGT]?)")
_MEGABYTES = {"K": 1 / 1024, "": 1.0, "M": 1.0, "G": 1024.0, "T": 1024.0**2}
_KEPT_OFF = ("SLURM_GPUS", "SLURM_GPUS_PER_NODE", "SLURM_GPUS_PER_TASK", "SLURM_MEM_PER_NODE", "SLURM_NTASKS_PER_NODE")
"""What a step would otherwise take over from its job in the place of what it asks for."""


def check_allocation(settings: SlurmExecutor) -> None:
    """Refuse to run outside of a job, or in one that is too small.

    Raises:
        RecipeError: says what is missing.
    """
    where = "compute.executor"
    if JOB not in os.environ:
        if shutil.which("srun") is None:
            raise RecipeError(
                "Slurm is not installed here (there is no srun)",
                where=where,
                fix="run this on a machine of the cluster, or set compute.executor.type to local or accelerate",
            )
        raise RecipeError(
            "this is not inside of a Slurm job, so there are no nodes to run on",
            where=where,
            fix="`spa submit RECIPE` submits one; inside of `salloc`, `spa run` works as it is",
        )
    nodes = int(os.environ.get("SLURM_JOB_NUM_NODES") or os.environ.get("SLURM_NNODES") or 1)
    if nodes < settings.nodes:
        raise RecipeError(
            f"asks for {settings.nodes} nodes, and job {os.environ[JOB]} has {nodes}",
            where=f"{where}.nodes",
            fix=f"set it to {nodes}, or ask for more nodes",
        )


class Steps:
    """Starts steps of the job that this process is in.

    Args:
        settings: of the recipe.
    """

    def __init__(self, settings: SlurmExecutor) -> None:
        self._settings = settings

    def slot(self, command: Sequence[str], log: Path, environment: Mapping[str, str], gpus: int) -> Running:
        """One process on one node, with so many GPUs to itself and its share of the node's processors and memory."""
        slots = max(1, self._settings.gpus_per_node) // max(1, gpus)
        options = ["--nodes=1", "--ntasks=1", "--exact", *self._share(slots)]
        return self._step(options, gpus, command, log, environment)

    def gang(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> Running:
        """A process on each node, which has all of the node; when one ends badly, all are ended."""
        nodes = self._settings.nodes
        options = [f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--kill-on-bad-exit=1"]
        return self._step([*options, *self._share(1)], self._settings.gpus_per_node, command, log, environment)

    def _share(self, slots: int) -> list[str]:
        """Options for one of so many equal parts of a node. Steps that name no memory may wait for each other."""
        options = [f"--cpus-per-task={max(1, int(os.environ.get('SLURM_CPUS_ON_NODE') or 1) // slots)}"]
        memory = self._memory_per_node()
        return options if memory is None else [*options, f"--mem={max(1, int(memory / slots))}M"]

    def _memory_per_node(self) -> float | None:
        """Megabytes of each node that belong to the job; None where Slurm does not count memory."""
        said = query(["scontrol", "show", "job", "--oneliner", os.environ[JOB]])
        found = _MEMORY.search(said)
        nodes = int(os.environ.get("SLURM_JOB_NUM_NODES") or 1)
        return float(found[1]) * _MEGABYTES[found[2]] / nodes if found else None

    def _step(
        self, options: Sequence[str], gpus: int, command: Sequence[str], log: Path, environment: Mapping[str, str]
    ) -> Running:
        asked = [f"--gpus-per-node={gpus}"] if self._settings.gpus_per_node else []
        return Step(["srun", "--quiet", "--unbuffered", *options, *asked, *command], log, environment)


class Step(Worker):
    """A process on another machine, by `srun`."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        super().__init__(command, log, environment, without=_KEPT_OFF)

    def stop(self) -> None:
        """End its processes by the end of their input, then `srun` itself."""
        self.end_input(STEP_SECONDS)
        super().stop()


def query(command: Sequence[str]) -> str:
    """What a command of Slurm prints; empty where it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
