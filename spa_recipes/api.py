"""The package from Python: what the command line does, as functions. Importing it loads no heavy library."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from spa_recipes.data.commits import Commits
from spa_recipes.errors import DAMAGE, LockedError, RecipeError, SpaError
from spa_recipes.plan import MODEL, External, Plan, Stage, compile_plan
from spa_recipes.recipe.load import LoadedRecipe, changed, load_recipe
from spa_recipes.recipe.schema import Recipe
from spa_recipes.run.changes import plan_changes
from spa_recipes.run.commits import commits_of
from spa_recipes.run.rundir import RunDir, all_runs, find_reusable, owned_by_others
from spa_recipes.state import marker, user_state
from spa_recipes.state.digests import DigestMemo

if TYPE_CHECKING:
    from spa_recipes.run.consent import Consent
    from spa_recipes.run.executors import Executors
    from spa_recipes.run.gc import Sweep
    from spa_recipes.run.reporter import Reporter
    from spa_recipes.run.runner import Outcome

DIGEST_MEMO = ".digests.json"


class Prepared(NamedTuple):
    """A recipe that was read and planned, and the folder it would run in.

    Attributes:
        text: the recipe for people; None for a run that is there, whose `recipe.yaml` stays as it is.
        path: the file that it was read from.
    """

    plan: Plan
    run: RunDir
    text: str | None
    path: Path | None = None


def prepare(
    recipe_path: Path, *, overrides: Sequence[str] = (), run_dir: Path | None = None, afresh: bool = False
) -> Prepared:
    """Read a recipe and plan it. Nothing runs, and only the memo of digests is written.

    With `afresh`, data and models are read again rather than taken for unchanged by their sizes and times, and the Hub
    is asked which commits the run will read.

    Raises:
        RecipeError: the recipe is wrong. DataError: a file or model is missing, or the run's folder has links.
        TryAgainError: the Hub cannot be reached.
    """
    loaded = load_recipe(recipe_path, overrides)
    path = run_dir if run_dir is not None else default_run_dir(loaded.recipe)
    return prepare_loaded(loaded, path, memo_for(path, afresh=afresh), ask=afresh)


def default_run_dir(recipe: Recipe) -> Path:
    """The folder of a recipe's run, unless the user names another."""
    return Path(recipe.storage.runs_dir) / recipe.name


def prepare_loaded(
    loaded: LoadedRecipe, run_dir: Path, memo: DigestMemo, *, ask: bool, commits: Mapping[str, str] | None = None
) -> Prepared:
    """Plan a recipe that was read.

    Args:
        ask: ask the Hub for the commits that the run does not know yet, else its cache.
        commits: of other runs, which this one reads, too, unless it has begun with others.

    Raises:
        RecipeError, DataError, TryAgainError: as `prepare`.
    """
    run = RunDir(run_dir)
    begins = marker.kind_of(run.path) is None
    if not begins:
        run.check()
    try:
        plan = compile_plan(loaded.recipe, memo, commits_of(run, ask=ask, others=commits))
    except SpaError:
        if begins and ask:
            _check_here(loaded.recipe)
        raise
    return Prepared(plan, run, loaded.text, loaded.path)


def prepare_rehearsal(prepared: Prepared) -> Prepared:
    """The rehearsal of a recipe that was prepared: the same stages with a few rows, in a folder of its own."""
    from spa_recipes.run.rehearsal import FOLDER, rehearsed

    assert isinstance(prepared.plan.recipe, Recipe)
    recipe = rehearsed(prepared.plan.recipe)
    run = RunDir(prepared.run.path.parent / FOLDER / prepared.run.path.name)
    if marker.kind_of(run.path) is not None:
        run.check()
    commits = Commits(prepared.plan.commits)
    return Prepared(compile_plan(recipe, memo_for(run.path, afresh=True), commits), run, None)


def run_recipe(
    prepared: Prepared,
    reporter: Reporter,
    *,
    until: str | None = None,
    accept: bool = False,
    executors: Executors | None = None,
    consent: Consent | None = None,
) -> Outcome:
    """Do what is not done yet: the whole plan, or the stage `until` and all stages that it needs.

    With `executors` of its own, a caller that does several runs imports the libraries once; it closes them itself.
    `consent` is the user's to what the recipe may do; without it, only what was agreed to before is done.

    Raises:
        SpaError: with the exit code of what went wrong; before anything starts for what is wrong with the inputs.
    """
    from spa_recipes.report.card import final_texts
    from spa_recipes.run.consent import require
    from spa_recipes.run.preflight import check_inputs
    from spa_recipes.run.runner import execute

    marker.refuse_foreign(prepared.run.path, prepared.run.kind)
    (consent or require)(prepared.plan, prepared.run)
    check_inputs(prepared.plan, prepared.run, until)
    return execute(
        prepared.plan,
        prepared.run,
        prepared.text,
        recipe_path=prepared.path,
        until=until,
        accept=accept,
        reporter=reporter,
        executors=executors,
        describe=final_texts,
    )


def prepare_resume(run: str | None, runs_dir: Path, *, overrides: Sequence[str] = (), afresh: bool = False) -> Prepared:
    """Read the stored recipe of a run, which is `resolved.json`, and plan it.

    `run` is a name below `runs_dir`, a folder, or None for the newest unfinished run that this user started.
    `overrides` are `key=value` texts that change the stored recipe.
    `afresh` is as in `prepare`.

    Raises:
        RecipeError: there is no such run, or nothing to resume. DataError, TryAgainError: as `prepare`.
    """
    folder = newest_unfinished(runs_dir).run if run is None else find_run(run, runs_dir)
    recipe = folder.recipe()
    if recipe is None:
        raise RecipeError("no run is there", where=str(folder.path), fix="see `spa status`")
    recipe = changed(recipe, overrides, folder.path / "resolved.json")
    plan = compile_plan(recipe, memo_for(folder.path, afresh=afresh), commits_of(folder, ask=afresh))
    return Prepared(plan, folder, None)


def find_run(run: str, runs_dir: Path) -> RunDir:
    """Find a run by its name or folder.

    Raises:
        RecipeError: there is no such run; the error names those that exist.
    """
    for path in (runs_dir / run, Path(run)):
        if (path / "resolved.json").is_file():
            found = RunDir(path)
            found.check()
            return found
    names = ", ".join(found.name for found in all_runs(runs_dir)) or "none"
    raise RecipeError(f"no run {run!r} in {runs_dir}", fix=f"runs there: {names}")


class NamedModel(NamedTuple):
    """Where a model's weights are, and a name for it that can be a file's."""

    location: str
    name: str


def find_model(model: str, runs_dir: Path) -> NamedModel:
    """Find a model: the final one of the run of this name, a folder, or a Hub id.

    Raises:
        RecipeError: the run has no final model yet.
    """
    from spa_recipes.run.final import model_shown

    if any((path / "resolved.json").is_file() for path in (runs_dir / model, Path(model))):
        run = find_run(model, runs_dir)
        if not run.final.exists():
            raise RecipeError("the run has no final model yet", where=str(run.path), fix=f"`{run.resume_command}`")
        return NamedModel(str(model_shown(run.final)), run.name)
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return NamedModel(model, _as_file_name(model.rstrip("/").split("/")[-1]))
    of_run = folder.name == "final"
    name = folder.resolve().parent.name if of_run else folder.resolve().name
    return NamedModel(str(model_shown(folder)) if of_run else str(folder), _as_file_name(name))


def _as_file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("._-")[:80] or "model"


class Unfinished(NamedTuple):
    """A run to go on with, and a line about each newer run that was passed over because it cannot be read."""

    run: RunDir
    passed_over: list[str]


def newest_unfinished(runs_dir: Path) -> Unfinished:
    """The newest run that is not finished, of those that this user started: nobody looked at another one's recipe.

    Raises:
        RecipeError: there is none.
    """
    from spa_recipes.run.overview import next_stage

    runs = all_runs(runs_dir)
    others, unreadable = [], dict[str, str]()
    for run in runs:
        if not user_state.started_here(run.path):
            others.append(run.name)
            continue
        try:
            run.check()
            if next_stage(run) is not None and run.recipe() is not None:
                return Unfinished(run, [f"{name} was passed over: {why}" for name, why in unreadable.items()])
        except (SpaError, *DAMAGE) as error:
            unreadable[run.name] = " ".join(str(error).split())
    if others:
        raise RecipeError(
            f"no unfinished run in {runs_dir} was started by you with this version",
            fix=f"to go on with one of the others, look at `spa status NAME` and name it: {', '.join(others)}",
        )
    if unreadable:
        raise RecipeError(
            f"every run in {runs_dir} that can be read is finished",
            fix=f"`spa status` says what is wrong with the others: {', '.join(unreadable)}",
        )
    if runs:
        raise RecipeError(
            f"every run in {runs_dir} is finished", fix="name one to look at it again, or see `spa status`"
        )
    raise RecipeError(f"no runs in {runs_dir}", fix="start one with `spa run RECIPE`")


class StageView(NamedTuple):
    """A line of `spa plan`: whether the stage's result exists, and if not, why."""

    stage: Stage
    state: str
    why: str


def plan_view(prepared: Prepared) -> list[StageView]:
    """Say of each stage: `done`, `in RUN` (another run has it), or `to do` with the reason."""

    plan, run = prepared.plan, prepared.run
    changes: dict[str, list[str]] = {}
    try:
        lines = plan_changes(plan, run)
    except ValueError:  # the stored plan was damaged, and says nothing
        lines = []
    for line in lines:
        name, _, change = line.partition(": ")
        changes.setdefault(name, []).append(change)
    views, stale = [], set[str]()
    for stage in plan.stages:
        if run.is_done(stage, plan):
            views.append(StageView(stage, "done", ""))
            continue
        whose = plan.recipe.storage.reuse
        other = find_reusable(run.path.parent, stage, run, whose, deep=False)  # a plan reads no weights
        if other is not None:
            views.append(StageView(stage, f"in {other[0]}", ""))
            continue
        stale.add(stage.id)
        upstream = [str(v).split("/")[0] for v in stage.inputs.values() if not isinstance(v, External)]
        reasons = changes.get(stage.id, []) or sorted({f"needs {name}" for name in upstream if name in stale})
        if (others := owned_by_others(run.path.parent, stage, run)) is not None:
            reasons = [*reasons, f"run {others}, which you did not start, has it (storage.reuse)"]
        views.append(StageView(stage, "to do", "; ".join(reasons) or "never run"))
    return views


def job_script(prepared: Prepared, recipe: Path, options: Sequence[str], run_dir: Path | None = None) -> str:
    """The script of the Slurm job that does a run, or a rehearsal.

    Args:
        recipe: as the user names it.
        options: further ones of `spa run`.
        run_dir: the folder that `spa run` is given: of a rehearsal, that of the run itself. None: that of `prepared`.

    Raises:
        RecipeError: the recipe does not run on Slurm.
    """
    from spa_recipes.recipe.schema import SlurmExecutor
    from spa_recipes.run.submit import driver_command, script

    executor = prepared.plan.recipe.compute.executor
    if not isinstance(executor, SlurmExecutor):
        raise RecipeError(
            f"{executor.type} is not an executor that is submitted",
            where="compute.executor.type",
            fix="set it to slurm, with nodes and gpus_per_node, or use `spa run`",
        )
    folder = prepared.run.path.absolute()
    command = driver_command(recipe, run_dir or folder, options)
    return script(executor, prepared.plan.recipe.name, folder, command, Path.cwd())


def submit(
    prepared: Prepared, recipe: Path, options: Sequence[str], consent: Consent, run_dir: Path | None = None
) -> str:
    """Submit the job of `job_script`; returns its number. What can be found wrong without nodes is found before.

    Raises:
        SpaError: with the exit code of what is wrong.
    """
    from spa_recipes.run.preflight import check_inputs
    from spa_recipes.run.submit import job_of, queue_state, submit

    run = prepared.run
    text = job_script(prepared, recipe, options, run_dir)
    marker.refuse_foreign(run.path, run.kind)
    consent(prepared.plan, run)
    if (job := job_of(run.path)) is not None and (state := queue_state(job)) is not None:
        raise LockedError(
            f"job {job} does this run already ({state})", where=str(run.path), fix="wait for it, or `spa cancel` it"
        )
    check_inputs(prepared.plan, run, on_nodes=False)
    marker.claim(run.path, run.kind)
    return submit(text, run.path)


def cancel(run: str, runs_dir: Path) -> str:
    """Cancel the Slurm job of a run, which need not have begun; returns the job's number.

    Raises:
        RecipeError: no job works on it. TryAgainError: Slurm does not answer.
    """
    from spa_recipes.run.submit import cancel, job_of

    folder = next((path for path in (runs_dir / run, Path(run)) if job_of(path) is not None), runs_dir / run)
    return cancel(folder, run)


def final_model(prepared: Prepared) -> Path | None:
    """Folder of the newest policy that the run has made so far."""
    plan, run = prepared.plan, prepared.run
    made = plan.newest_model([stage.id for stage in plan.stages if run.is_done(stage, plan)])
    return None if made is None else run.stage_dir(made, plan).output / MODEL


def collect_garbage(run: str | None, runs_dir: Path, *, models: bool = False, delete: bool = False) -> list[Sweep]:
    """Find what a run, or every run in `runs_dir`, no longer needs, and delete it if `delete` is set.

    With `models`, a finished run does not need the weights of the policies before the final one.

    Raises:
        RecipeError: there is no such run.
    """
    from spa_recipes.run import gc

    runs = all_runs(runs_dir) if run is None else [find_run(run, runs_dir)]
    return gc.sweep(runs, models=models) if delete else gc.look(runs, models=models)


def memo_for(run_folder: Path, *, afresh: bool = False) -> DigestMemo:
    """Digests of files that were read for the runs beside this one; with `afresh`, each is read once more."""
    return DigestMemo(run_folder.parent / DIGEST_MEMO, afresh=afresh)


def _check_here(recipe: Recipe) -> None:
    """Refuse what is wrong on this machine: that is told before what a Hub says, which may be out of reach."""
    from spa_recipes.data.asked import check_counted
    from spa_recipes.run.packages import missing_packages

    if missing := next(missing_packages(recipe), None):
        raise missing
    check_counted(recipe.data)
