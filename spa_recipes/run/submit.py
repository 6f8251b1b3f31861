"""A run as a Slurm job: its script, its number, which the run's folder notes, and its state in the queue."""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from spa_recipes.errors import RecipeError, TryAgainError
from spa_recipes.recipe.schema import SlurmExecutor
from spa_recipes.run.slurm import query
from spa_recipes.state import atomic
from spa_recipes.state.reading import read_text

JOB = ".job"
"""A file in a run's folder with the number of the Slurm job that works, or worked, on it."""
SCRIPT = "submit.sh"
SECONDS_TO_STOP = 120
"""How long before the end of its time a job stops its run, to be queued again."""

_AGAIN = """again=
trap 'again=1; kill -TERM "$driver"' USR1
"""
_REQUEUE = """if [ -n "$again" ] || {{ [ "$code" = 75 ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {restarts} ]; }}; then
  scontrol requeue "$SLURM_JOB_ID"
fi
"""


def script(settings: SlurmExecutor, name: str, run: Path, command: Sequence[str], folder: Path) -> str:
    """The text of a job that does a run.

    Args:
        name: of the recipe.
        run: the run's folder, which gets the job's output.
        command: what does the run, such as `spa run RECIPE`.
        folder: in which it is called.
    """
    options: dict[str, str | int | None] = {
        "job-name": f"spa-{name}",
        "nodes": settings.nodes,
        "gpus-per-node": settings.gpus_per_node or None,
        "time": settings.time,
        "partition": settings.partition,
        "account": settings.account,
        "qos": settings.qos,
        "output": f"{run}/slurm-%j.log",
        "open-mode": "append",
        "chdir": str(folder),
        "signal": f"B:USR1@{SECONDS_TO_STOP}" if settings.requeue else None,
        "exclusive": "user",
        **settings.sbatch,
    }
    lines = [f'#SBATCH --{key}="{value}"' for key, value in options.items() if value is not None]
    # A node that fails ends its steps only: the run goes on with the others, or is queued again.
    lines += ["#SBATCH --no-kill", "#SBATCH --requeue" if settings.requeue else "#SBATCH --no-requeue"]
    return "".join(
        [
            "#!/bin/bash\n",
            *(f"{line}\n" for line in lines),
            *(f"{line}\n" for line in settings.setup),
            _AGAIN if settings.requeue else "",
            f"{shlex.join(command)} < /dev/null &\n",
            "driver=$!\n",
            # A signal ends `wait` early; once the driver has ended, `wait` says how.
            'while kill -0 "$driver" 2> /dev/null; do wait "$driver"; done\n',
            'wait "$driver"\n',
            "code=$?\n",
            _REQUEUE.format(restarts=settings.max_restarts) if settings.requeue else "",
            'exit "$code"\n',
        ]
    )


def driver_command(recipe: Path, run: Path, options: Sequence[str]) -> list[str]:
    """`spa run` of a recipe by the Python of this process."""
    name = str(recipe.absolute()) if recipe.exists() else str(recipe)
    return [sys.executable, "-m", "spa_recipes.cli", "run", name, "--run-dir", str(run.absolute()), *options]


def submit(text: str, run: Path) -> str:
    """Submit a script; returns the number of the job, which the run's folder notes.

    Raises:
        RecipeError: Slurm is not installed here, or does not take the job.
    """
    if shutil.which("sbatch") is None:
        raise RecipeError(
            "Slurm is not installed here (there is no sbatch)",
            where="compute.executor.type",
            fix="submit on a login node of the cluster",
        )
    atomic.write_text(run / SCRIPT, text)
    done = subprocess.run(["sbatch", "--parsable", str(run / SCRIPT)], capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise RecipeError(
            f"Slurm does not take the job: {said.removeprefix('sbatch: error: ')}",
            where="compute.executor",
            fix=f"change the options there; the script is {run / SCRIPT}",
        )
    job = done.stdout.strip().split(";")[0]
    note_job(run, job)
    return job


def note_job(run: Path, job: str) -> None:
    """Note which job works on a run."""
    atomic.write_json(run / JOB, {"slurm": job})


def job_of(run: Path) -> str | None:
    """The number of the job that works, or worked, on a run; None if there was none."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        job = json.loads(read_text(run / JOB))["slurm"]
        if isinstance(job, str) and job.isdecimal():
            return job
    return None


def queue_state(job: str) -> str | None:
    """What Slurm says of a job that waits or runs, e.g. `PENDING (Priority), starts 2026-01-01T08:00:00`."""
    said = query(["squeue", "--noheader", "--jobs", job, "--format", "%T|%r|%S|%N"]).strip()
    if not said:
        return None
    state, reason, start, nodes = said.splitlines()[0].split("|")
    if state == "PENDING":
        return f"{state} ({reason})" + (f", starts {start}" if start != "N/A" else "")
    return f"{state} on {nodes}" if nodes else state


def cancel(run: Path, name: str) -> str:
    """Cancel the job of a run; returns its number.

    Raises:
        RecipeError: no job works on it.
        TryAgainError: Slurm does not answer.
    """
    job = job_of(run)
    if job is None or (queue_state(job) is None and shutil.which("scancel")):
        raise RecipeError(f"no Slurm job works on {name}", fix="see `spa status`; another run is stopped with Ctrl-C")
    try:
        subprocess.run(["scancel", job], capture_output=True, text=True, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1]
        raise TryAgainError(f"job {job} could not be cancelled: {said}", where=name, fix="see `squeue`") from error
    return job
