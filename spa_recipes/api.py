"""The package from Python: what the command line does, as functions. Importing it loads no heavy library."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import ValidationError

from spa_recipes.errors import DAMAGE, RecipeError, SpaError, setting
from spa_recipes.plan import MODEL, External, Plan, Stage, compile_judge_plan, compile_plan
from spa_recipes.recipe.load import changed, load_recipe
from spa_recipes.recipe.rules import conflicts_in
from spa_recipes.recipe.schema import Compute, DatasetSource, ForkExecutor, ImplicitRewardJudge, JudgeJob, Model, Recipe
from spa_recipes.run.changes import plan_changes
from spa_recipes.run.rundir import RunDir, all_runs, find_reusable, owned_by_others
from spa_recipes.state import atomic, marker, user_state
from spa_recipes.state.digests import DigestMemo
from spa_recipes.state.stagedir import Manifest

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
    """

    plan: Plan
    run: RunDir
    text: str | None


def prepare(
    recipe_path: Path, *, overrides: Sequence[str] = (), run_dir: Path | None = None, afresh: bool = False
) -> Prepared:
    """Read a recipe and plan it. Nothing runs, and only the memo of digests is written.

    With `afresh`, data and models are read again rather than taken for unchanged by their sizes and times.

    Raises:
        RecipeError: the recipe is wrong. DataError: a local file or model is missing, or the run's folder has links.
    """
    loaded = load_recipe(recipe_path, overrides)
    recipe = loaded.recipe
    run = RunDir(run_dir if run_dir is not None else Path(recipe.storage.runs_dir) / recipe.name)
    if marker.kind_of(run.path) is not None:
        run.check()
    return Prepared(compile_plan(recipe, _memo(run.path, afresh=afresh)), run, loaded.text)


def prepare_rehearsal(prepared: Prepared) -> Prepared:
    """The rehearsal of a recipe that was prepared: the same stages with a few rows, in a folder of its own."""
    from spa_recipes.run.rehearsal import FOLDER, rehearsed

    assert isinstance(prepared.plan.recipe, Recipe)
    recipe = rehearsed(prepared.plan.recipe)
    run = RunDir(prepared.run.path.parent / FOLDER / prepared.run.path.name)
    if marker.kind_of(run.path) is not None:
        run.check()
    return Prepared(compile_plan(recipe, _memo(run.path, afresh=True)), run, None)


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
    With `afresh`, data and models are read again rather than taken for unchanged by their sizes and times.

    Raises:
        RecipeError: there is no such run, or nothing to resume.
    """
    folder = newest_unfinished(runs_dir).run if run is None else find_run(run, runs_dir)
    recipe = folder.recipe()
    if recipe is None:
        raise RecipeError("no run is there", where=str(folder.path), fix="see `spa status`")
    recipe = changed(recipe, overrides, folder.path / "resolved.json")
    plan = compile_plan(recipe, _memo(folder.path, afresh=afresh))
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

    plan, run, _ = prepared
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


class JudgeRequest(NamedTuple):
    """What `spa judge` is asked to do; names are those of the command's options."""

    policy: str
    reference: str
    pairs: str
    out: Path
    beta: float = 0.1
    length_penalty: str = "0"
    dtype: str = "auto"
    method: str = "auto"
    min_margin_in_noise: float | None = None
    max_length: int | None = None
    max_prompt_length: int | None = None
    columns: dict[str, str | None] | None = None
    data: dict[str, Any] | None = None
    split: str | None = None
    on_bad_row: str = "error"
    seed: int = 42
    overwrite: bool = False
    trust_remote_code: bool = False
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None


def judge_pairs(request: JudgeRequest, reporter: Reporter) -> Manifest:
    """Label pairs that a user already has, with the implicit reward of a policy against its reference.

    Until the output is written, the work stays in `OUT.spa/` beside it. The same call continues it after a stop.

    Raises:
        SpaError: with the exit code of what went wrong.
    """
    from spa_recipes.run.preflight import check_inputs
    from spa_recipes.run.runner import execute

    if request.out.is_dir() or request.out.name in ("", ".."):
        raise RecipeError("it is a folder", where=str(request.out), fix="name the file to write")
    run = RunDir(request.out.with_name(request.out.name + ".spa"), "job")
    marker.refuse_foreign(run.path, run.kind)
    in_the_way = RecipeError(
        "the output file is there already", where=str(request.out), fix="choose another, or --overwrite"
    )
    # Where unfinished work stands beside it, the same call may have written the file before it was killed.
    if request.out.exists() and not request.overwrite and not run.path.is_dir():
        raise in_the_way
    if not request.out.parent.is_dir():
        raise RecipeError("no such folder", where=str(request.out.parent), fix="make it first")
    job = _judge_job(_with_lengths(request))
    plan = compile_judge_plan(job, DigestMemo(run.path / DIGEST_MEMO, afresh=True))
    check_inputs(plan, run)
    text = json.dumps(job.model_dump(mode="json"), indent=2)
    outcome = execute(plan, run, text, until=None, accept=True, reporter=reporter)
    content = (run.stage_dir(plan.stage("judge"), plan).output / "pairs.jsonl").read_bytes()
    if request.out.exists() and not request.overwrite and request.out.read_bytes() != content:
        raise in_the_way
    finished = run.path / ".finished"
    atomic.write_bytes(finished, content)
    finished.replace(request.out)
    atomic.fsync_dir(request.out.parent)
    marker.remove(run.path, run.kind)
    return outcome.manifests["judge"]


def _judge_job(request: JudgeRequest) -> JudgeJob:
    from spa_recipes.run.devices import visible_gpus
    from spa_recipes.run.tangent_preflight import is_adapter

    adapter = is_adapter(request.policy)  # it is the policy together with the reference
    lengths = {"max_length": request.max_length, "max_prompt_length": request.max_prompt_length}
    model: dict[str, Any] = {
        "model_name_or_path": request.reference if adapter else request.policy,
        "dtype": request.dtype,
        **{name: value for name, value in lengths.items() if value is not None},
        "trust_remote_code": request.trust_remote_code,
        "chat_template": request.chat_template,
        "chat_template_kwargs": request.chat_template_kwargs or {},
    }
    try:
        return JudgeJob(
            name=request.out.stem or "judge",
            model=Model.model_validate(model),
            reference=request.reference,
            adapter=request.policy if adapter else None,
            pairs=DatasetSource.model_validate(
                {
                    "source": request.pairs,
                    "split": request.split,
                    **(request.data or {}),
                    "columns": {**(request.columns or {}), **(request.data or {}).get("columns", {})},
                    "on_bad_row": request.on_bad_row,
                }
            ),
            judge=ImplicitRewardJudge.model_validate(
                {
                    "beta": request.beta,
                    "length_penalty": _length_penalty(request.length_penalty),
                    "method": request.method,
                    "min_margin_in_noise": request.min_margin_in_noise,
                }
            ),
            seed=request.seed,
            # Without a GPU the stages can share one import of the libraries.
            compute=Compute() if visible_gpus() else Compute(executor=ForkExecutor(type="fork")),
        )
    except ValidationError as error:
        for conflict in conflicts_in(error):
            option = conflict.keys[0].rpartition(".")[2].replace("_", "-")
            raise RecipeError(conflict.what, where=f"--{option}", fix=conflict.fix) from None
        first = error.errors()[0]
        raise RecipeError(first["msg"], where="--" + "-".join(str(part) for part in first["loc"])) from None


def _with_lengths(request: JudgeRequest) -> JudgeRequest:
    """The request with the lengths that it does not name: what both models have positions for, and half of it.

    Raises:
        DataError, TryAgainError: the configuration of a model cannot be read.
    """
    from spa_recipes.data.model_files import ModelFiles
    from spa_recipes.run.model_preflight import context_of

    most = request.max_length
    if most is None:
        limits = []
        for option, location in (("--policy", request.policy), ("--reference", request.reference)):
            with setting(option):
                limit = context_of(ModelFiles(location, None))
            limits += [limit] if limit is not None else []
        most = min(limits, default=2048)
    return request._replace(max_length=most, max_prompt_length=request.max_prompt_length or max(1, most // 2))


def _length_penalty(text: str) -> float | Literal["balanced"]:
    """A number of at least 0, or `balanced`."""
    if text == "balanced":
        return "balanced"
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise RecipeError(
            f"must be a number of at least 0, or balanced, not {text!r}", where="--length-penalty", fix="e.g. 0.01"
        )
    return number


def final_model(prepared: Prepared) -> Path | None:
    """Folder of the newest policy that the run has made so far."""
    plan, run, _ = prepared
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


def _memo(run_folder: Path, *, afresh: bool = False) -> DigestMemo:
    return DigestMemo(run_folder.parent / DIGEST_MEMO, afresh=afresh)
