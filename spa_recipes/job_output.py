"""What jobs share: work in progress in `OUT.spa/` beside the output, and an output that comes into place as a whole.

A job that was stopped goes on when it is called again, as its finished stages are in `OUT.spa/`. Importing this loads
no heavy library.
"""

from __future__ import annotations

import filecmp
import json
from pathlib import Path
from typing import TYPE_CHECKING

from spa_recipes.api import DIGEST_MEMO
from spa_recipes.errors import RecipeError
from spa_recipes.plan import Plan
from spa_recipes.recipe.schema import Compute, ForkExecutor, TransformersBackend, VllmBackend
from spa_recipes.run.devices import visible_gpus
from spa_recipes.run.rundir import RunDir
from spa_recipes.state import atomic, marker
from spa_recipes.state.digests import DigestMemo

if TYPE_CHECKING:
    from spa_recipes.run.executors import Executors
    from spa_recipes.run.reporter import Reporter
    from spa_recipes.run.runner import Outcome

FINISHED = ".finished"
"""A file or folder in the work in progress with the output, before it comes into place."""


def work_beside(out: Path) -> RunDir:
    """The folder of the work in progress of a job that writes `out`.

    Raises:
        RecipeError: it is there and is something else.
    """
    run = RunDir(out.with_name(out.name + ".spa"), "job")
    marker.refuse_foreign(run.path, run.kind)
    return run


def open_for_file(out: Path, *, overwrite: bool) -> RunDir:
    """`work_beside` of a job that writes a file.

    Raises:
        RecipeError: the file cannot be written there, or another one is there and is not to be replaced.
    """
    if out.is_dir() or out.name in ("", ".."):
        raise RecipeError("it is a folder", where=str(out), fix="name the file to write")
    run = work_beside(out)
    # Where unfinished work stands beside it, the same call may have written the file before it was killed.
    if out.exists() and not overwrite and not run.path.is_dir():
        raise _in_the_way(out)
    if not out.parent.is_dir():
        raise RecipeError("no such folder", where=str(out.parent), fix="make it first")
    return run


def memo_of(run: RunDir) -> DigestMemo:
    """Digests of what the job reads, which is read again in every call."""
    return DigestMemo(run.path / DIGEST_MEMO, afresh=True)


def work(plan: Plan, run: RunDir, reporter: Reporter, executors: Executors | None = None) -> Outcome:
    """Do what is not done yet of a job.

    Raises:
        SpaError: with the exit code of what went wrong; before anything starts for what is wrong with the inputs.
    """
    from spa_recipes.run.preflight import check_inputs
    from spa_recipes.run.runner import execute

    check_inputs(plan, run)
    text = json.dumps(plan.recipe.model_dump(mode="json"), indent=2)
    return execute(plan, run, text, until=None, accept=True, reporter=reporter, executors=executors)


def deliver(run: RunDir, out: Path, *, overwrite: bool) -> None:
    """Make the finished file of the work in progress the output, and remove the rest.

    Raises:
        RecipeError: another file came there in the meantime and is not to be replaced.
    """
    finished = run.path / FINISHED
    if out.exists() and not overwrite and not filecmp.cmp(out, finished, shallow=False):
        raise _in_the_way(out)
    finished.replace(out)
    atomic.fsync_dir(out.parent)
    marker.remove(run.path, run.kind)


def _in_the_way(out: Path) -> RecipeError:
    return RecipeError("the output file is there already", where=str(out), fix="choose another, or --overwrite")


def compute_here(compute: Compute, backend: TransformersBackend | VllmBackend) -> Compute:
    """How the stages of a job start: without a GPU they share one import of the libraries, unless the user says how."""
    if "executor" in compute.model_fields_set or backend.type == "vllm" or visible_gpus():
        return compute
    return compute.model_copy(update={"executor": ForkExecutor(type="fork")})
