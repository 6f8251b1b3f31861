"""Runs a job of `spa evaluate`: one of the field's benchmarks for one model. Importing it loads no heavy library."""

import json
import os
import shutil
from pathlib import Path
from typing import NamedTuple

from spa_recipes import job_output
from spa_recipes.api import find_model
from spa_recipes.benchmarks import alpaca_eval
from spa_recipes.errors import RecipeError
from spa_recipes.plan import KINDS, Plan
from spa_recipes.plan.benchmarks import compile_benchmark_plan
from spa_recipes.recipe.jobs import BenchmarkJob
from spa_recipes.recipe.schema import LmEval, Pairwise
from spa_recipes.run.commits import commits_of
from spa_recipes.run.consent import Consent, require
from spa_recipes.run.executors import Executors
from spa_recipes.run.reporter import Reporter
from spa_recipes.run.rundir import RunDir
from spa_recipes.state import atomic, marker
from spa_recipes.state.digests import DigestMemo
from spa_recipes.state.stagedir import Manifest

RESULTS = Path("evaluations")
"""Folder of the results of jobs that name none."""


class BenchmarkResult(NamedTuple):
    """What came of a job: where it is, and the manifests of the stages by id."""

    out: Path
    plan: Plan
    manifests: dict[str, Manifest]


def run_benchmark(
    job: BenchmarkJob, reporter: Reporter, executors: Executors | None = None, *, consent: Consent = require
) -> BenchmarkResult:
    """Run a benchmark for a model.

    Work in progress lives in `OUT.spa/` beside the output until that is there, so a stopped job goes on where it was
    when it is run again. `executors` of one's own spare several jobs in a row the import of the libraries; the caller
    closes them. `consent` is the user's to what the job may do.

    Raises:
        SpaError: with the exit code of what went wrong.
    """
    job = settled(job)
    out = RESULTS / f"{job.name}-{job.benchmark.type}" if job.out is None else Path(job.out).expanduser()
    if out.name in ("", ".."):
        raise RecipeError("no name for a folder of results", where=f"out: {out}", fix="add one to it")
    run = job_output.work_beside(out)
    # With work in progress beside it, the folder may be the same job's, which was killed while it cleaned up.
    if out.exists() and not job.overwrite and not run.path.is_dir():
        raise _in_the_way(out)
    if job.overwrite:
        _refuse_to_replace(out)
    if job.out is not None and not out.absolute().parent.is_dir():
        raise RecipeError("no such folder", where=f"out: {out.parent}", fix="make it first")
    memo = job_output.memo_of(run)
    consent(compile_benchmark_plan(job, memo, commits_of(run, ask=False)), run)  # before the Hub hears of it
    plan = compile_benchmark_plan(job, memo, commits_of(run, ask=True))
    if job.out is None:
        out.parent.mkdir(exist_ok=True)
    outcome = job_output.work(plan, run, reporter, executors)
    finished = _collect(plan, run)
    _put_in_place(finished, out, overwrite=job.overwrite)
    marker.remove(run.path, run.kind)
    return BenchmarkResult(out, plan, outcome.manifests)


def settled(job: BenchmarkJob) -> BenchmarkJob:
    """The job with folders in the place of the names of runs, a name for the model, and an executor.

    Raises:
        RecipeError: a run that is named has no final model yet.
    """
    runs_dir, benchmark = Path(job.storage.runs_dir), job.benchmark
    location, name = find_model(job.model.model_name_or_path, runs_dir)
    if isinstance(benchmark, Pairwise | LmEval) and benchmark.against is not None:
        benchmark = benchmark.model_copy(update={"against": find_model(benchmark.against, runs_dir).location})
    return job.model_copy(
        update={
            "name": job.name or name,
            "model": job.model.model_copy(update={"model_name_or_path": location}),
            "benchmark": benchmark,
            "compute": job_output.compute_here(job.compute, job.backend),
        }
    )


def _collect(plan: Plan, run: RunDir) -> Path:
    """The results of the stages in one marked folder, beside the stages."""
    finished = run.path / job_output.FINISHED
    shutil.rmtree(finished, ignore_errors=True)
    finished.mkdir()
    marker.mark(finished, "results")
    for stage in plan.stages:
        output = run.stage_dir(stage, plan).output
        for path in (path for pattern in KINDS[stage.kind].delivers for path in output.glob(pattern)):
            target = finished / path.relative_to(output)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
    atomic.fsync_tree(finished)
    return finished


def _put_in_place(finished: Path, out: Path, *, overwrite: bool) -> None:
    """Make `finished` the folder of results; one that holds the same stays, another goes into the work in progress."""
    if out.exists() and not (out.is_dir() and _content(out) == _content(finished)):
        if not overwrite:
            raise _in_the_way(out)
        _refuse_to_replace(out)
        replaced = finished.with_name(".replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        out.rename(replaced)
    if not out.exists():
        finished.replace(out)
        atomic.fsync_dir(out.absolute().parent)


def _refuse_to_replace(out: Path) -> None:
    """Refuse to replace what is no folder of results, or has somebody's own files beside the results.

    Raises:
        RecipeError: it is one of these.
    """
    marker.refuse_foreign(out, "results")
    patterns = (marker.MARKER, *(pattern for kind in KINDS.values() for pattern in kind.delivers))
    results = {path for pattern in patterns for path in out.glob(pattern)}
    others = [path for path in sorted(out.rglob("*")) if path not in results and (path.is_symlink() or path.is_file())]
    if others:
        raise RecipeError(
            f"{others[0].relative_to(out)} in the folder of results is not from spa evaluate; nothing was replaced",
            where=str(out),
            fix="move it away, or choose another `out`",
        )


def _in_the_way(out: Path) -> RecipeError:
    return RecipeError(
        "the output folder is there already", where=str(out), fix="choose another `out`, or set overwrite: true"
    )


def _content(folder: Path) -> str:
    return DigestMemo(folder / "none").of(folder)


def score_annotations(annotations: str, out: Path | None) -> alpaca_eval.Scores:
    """The rates of an AlpacaEval annotation file; written as `out/scores.json` where `out` is given.

    Raises:
        RecipeError: the package alpaca_eval is not installed, or other scores are there already.
        DataError: the file is missing or not such a file.
    """
    path = Path(annotations).expanduser()
    rows = alpaca_eval.read_annotations(path)
    if out is not None and not out.absolute().parent.is_dir():
        raise RecipeError("no such folder", where=str(out.parent), fix="make it first")
    scores = alpaca_eval.score(rows, str(path))
    if out is not None:
        file, text = out / "scores.json", json.dumps(scores.figures, indent=2, ensure_ascii=False) + "\n"
        if os.path.lexists(file) and (not file.is_file() or file.read_bytes() != text.encode()):
            raise RecipeError("other scores are there already", where=str(file), fix="choose another --out")
        out.mkdir(exist_ok=True)
        atomic.write_text(file, text)
    return scores
