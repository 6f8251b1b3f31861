"""Looks at the nodes of a cluster before the first stage: each is asked what it is and what it sees of the run."""

import json
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from spa_recipes.errors import RecipeError, TryAgainError
from spa_recipes.recipe.schema import RayExecutor, SlurmExecutor
from spa_recipes.run.failure import first_error
from spa_recipes.run.probe import CANARY
from spa_recipes.run.processes import Running
from spa_recipes.state import atomic
from spa_recipes.state.versions import library_versions

PROBE = "spa_recipes.run.probe"
LOG = "nodes.log"
"""A file in a run's folder with what its nodes said of themselves."""
PATIENCE_SECONDS = 300.0
_POLL_SECONDS = 0.1


class Gang(Protocol):
    """Starts a process on each node."""

    def gang(self, command: list[str], log: Path, environment: dict[str, str]) -> Running:
        """See `executors.Cluster`."""


def check_nodes(cluster: Gang, settings: SlurmExecutor | RayExecutor, run: Path, *, vllm: bool) -> None:
    """Ask every node; their answers stay in `nodes.log`.

    Args:
        vllm: whether a stage needs vLLM in this Python.

    Raises:
        RecipeError: a node does not see the run, has another version of a package, or fewer GPUs than asked.
        TryAgainError: a node does not answer.
    """
    token, log = uuid.uuid4().hex, run / LOG
    atomic.write_text(run / CANARY, token)
    for path in _logs(run):
        path.unlink()
    try:
        probes = cluster.gang([sys.executable, "-m", PROBE, str(run.absolute()), token], log, {})
        _wait(probes, log, PATIENCE_SECONDS + _seconds_for_room(settings))
    finally:
        (run / CANARY).unlink(missing_ok=True)
    answers = [answer for path in _logs(run) for answer in _answers(path)]
    if len(answers) < settings.nodes:
        lines = (line for path in _logs(run) for line in path.read_text(errors="replace").splitlines())
        said = [line for line in lines if line.strip()]
        why = first_error(said) or next((line for line in said if "error" in line.lower()), "nothing is in their log")
        raise TryAgainError(
            f"{len(answers)} of {settings.nodes} nodes say what they are: {why}",
            where="compute.executor.nodes",
            fix=f"see {log}",
        )
    for answer in answers:
        _check(answer, settings, run, vllm=vllm)


def _seconds_for_room(settings: SlurmExecutor | RayExecutor) -> float:
    """How long a cluster may let the probes wait; the nodes of a Slurm job are there already."""
    return settings.wait_minutes * 60 if isinstance(settings, RayExecutor) else 0.0


def _wait(running: Running, log: Path, seconds: float) -> None:
    end = time.monotonic() + seconds
    while running.poll() is None:
        if time.monotonic() > end:
            running.stop()
            raise TryAgainError(
                f"the nodes do not answer within {seconds:.0f} s", where=str(log), fix="see what they wait for"
            )
        time.sleep(_POLL_SECONDS)


def _logs(run: Path) -> list[Path]:
    """The log of the first node, or of all where they write one, and those of others and of a launcher."""
    return sorted(run.glob(f"{Path(LOG).stem}*.log"))


def _answers(log: Path) -> Iterator[dict[str, Any]]:
    for line in log.read_text(errors="replace").splitlines():
        if line.startswith("{"):
            yield json.loads(line)


def _check(answer: dict[str, Any], settings: SlurmExecutor | RayExecutor, run: Path, *, vllm: bool) -> None:
    node = f"node {answer['node']}"
    if not answer["sees"]:
        raise RecipeError(
            f"{node} does not see the run's folder",
            where=str(run.absolute()),
            fix="put it on a drive that all nodes mount at the same place (--run-dir, or storage.runs_dir)",
        )
    here = library_versions()
    for name, version in answer["versions"].items():
        if version != here.get(name, "(none)"):
            raise RecipeError(
                f"{node} has {name} {version}, and there is {here.get(name, '(none)')} here",
                where="compute.executor",
                fix="use one environment on all nodes",
            )
    if answer["gpus"] < settings.gpus_per_node:
        raise RecipeError(
            f"{node} has {answer['gpus']} GPUs that torch sees, fewer than asked",
            where="compute.executor.gpus_per_node",
            fix=f"set it to {answer['gpus']}, or look at the node",
        )
    if vllm and not answer["vllm"]:
        raise RecipeError(
            f"vLLM is not installed on {node}",
            where="sampling.backend.type",
            fix="pip install 'spa-recipes[vllm]' there, or name the Python that has it in compute.vllm_python",
        )
    if not answer["held"]:
        raise RecipeError(
            f"{node} does not see that this process holds the run, so another one could take it",
            where=str(run.absolute()),
            fix="put the run on a drive where a file that one machine writes is seen by the others within seconds",
        )
