"""Drives a plan: reuse what is there, run what is not, stop at the first failure."""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from pydantic import BaseModel

from spa_recipes.errors import EXIT_CODES, RecipeChangedError, SpaError, StageError
from spa_recipes.keys import differences
from spa_recipes.plan import MODEL, External, Plan, Stage
from spa_recipes.run.executors import Executors, Running
from spa_recipes.run.rundir import RunDir, find_reusable
from spa_recipes.stages.context import StageSpec
from spa_recipes.state.stagedir import Manifest, StageDir, adopt

POLL_SECONDS = 0.05
LOG_LINES_SHOWN = 8


class Reporter(Protocol):
    """Who is told what happens."""

    def reused(self, stage: Stage, manifest: Manifest, *, adopted: bool) -> None:
        """A finished stage is used again, of this run or (`adopted`) of another."""

    def damaged(self, stage: Stage, problems: list[str], aside: Path) -> None:
        """A finished stage was altered since; it was set aside and will be done again."""

    def started(self, stage: Stage, attempt: int) -> None:
        """A stage's process was started."""

    def progress(self, stage: Stage, done: int, total: int, unit: str, note: str) -> None:
        """How far the running stage is."""

    def finished(self, stage: Stage, manifest: Manifest) -> None:
        """A stage was committed."""


class Outcome(NamedTuple):
    """Manifests of the finished stages in order; `complete` if the whole plan is done."""

    manifests: dict[str, Manifest]
    complete: bool
    seconds: float


def execute(
    plan: Plan, run: RunDir, recipe_text: str, *, until: str | None, accept: bool, reporter: Reporter
) -> Outcome:
    """Run the plan in `run`, or what is left of it.

    Raises:
        LockedError: another process holds the run.
        RecipeChangedError: the run was started with another recipe and `accept` is False.
        SpaError: a stage failed; its class gives the exit code.
    """
    begin = time.monotonic()
    stages = plan.until(until)
    with run.locked():
        if not accept:
            refuse_changes(plan, run)
        run.write_recipe(recipe_text, plan.recipe, plan)
        run.log_event("run started", stages=[stage.id for stage in stages])
        executors = Executors(plan.recipe.compute.executor)
        manifests: dict[str, Manifest] = {}
        try:
            for stage in stages:
                manifests[stage.id] = _reuse(plan, run, stage, reporter) or _run(plan, run, stage, executors, reporter)
        except BaseException as error:
            run.log_event("run stopped", reason=f"{type(error).__name__}: {error}".splitlines()[0])
            raise
        finally:
            executors.close()
        complete = len(stages) == len(plan.stages)
        if complete and plan.final_model is not None:
            run.point_to_final(run.stage_dir(plan.stage(plan.final_model), plan).output / MODEL)
        run.log_event("run finished" if complete else "run paused")
    return Outcome(manifests, complete, time.monotonic() - begin)


def refuse_changes(plan: Plan, run: RunDir) -> None:
    """Compare the plan with the one that the run was started with.

    Raises:
        RecipeChangedError: some stage would have another key.
    """
    changes = plan_changes(plan, run)
    if changes:
        raise RecipeChangedError(
            "the recipe, its data or its model changed since the run was started: " + "; ".join(changes[:5]),
            where=str(run.path),
            fix="go on with --accept (redoes the affected stages only), or choose another name or --run-dir",
        )


def plan_changes(plan: Plan, run: RunDir) -> list[str]:
    """`stage: field: old -> new` for every stage whose own settings or data differ from the run's stored plan."""
    try:
        stored = {entry["id"]: entry for entry in json.loads((run.path / "plan.json").read_text())}
    except (OSError, ValueError):
        return []
    if all(stored.get(stage.id, {}).get("key") == stage.key for stage in plan.stages) and len(stored) == len(
        plan.stages
    ):
        return []
    now = {stage.id for stage in plan.stages}
    changes = [f"stage {name} is gone" for name in stored if name not in now]
    for stage in plan.stages:
        if stage.id not in stored:
            changes.append(f"stage {stage.id} is new")
            continue
        lines = differences(stored[stage.id]["material"], stage.material)
        own = [line for line in lines if not _is_upstream(line, stage)]
        changes += [f"{stage.id}: {line}" for line in own]
    return changes


def _is_upstream(line: str, stage: Stage) -> bool:
    """Whether a difference only repeats that an earlier stage changed."""
    name = line.removeprefix("inputs.").split(":")[0]
    return line.startswith("inputs.") and not isinstance(stage.inputs.get(name), External)


def _reuse(plan: Plan, run: RunDir, stage: Stage, reporter: Reporter) -> Manifest | None:
    """The stage's manifest if it need not run: done here, or in another run of the same folder."""
    folder = run.stage_dir(stage, plan)
    manifest = folder.manifest()
    if manifest is not None or (folder.path / "manifest.json").exists():
        problems = folder.problems(deep=True)
        if manifest is not None and manifest.key == stage.key and not problems:
            reporter.reused(stage, manifest, adopted=False)
            return manifest
        aside = folder.set_aside()
        run.log_event("stage damaged", stage=stage.id, problems=problems, aside=aside.name)
        reporter.damaged(stage, problems, aside)
    found = find_reusable(run.path.parent, stage, besides=run)
    if found is None or folder.path.exists():
        return None
    name, source = found
    adopt(source, folder, name)
    adopted = folder.manifest()
    assert adopted is not None
    run.log_event("stage adopted", stage=stage.id, source=name)
    reporter.reused(stage, adopted, adopted=True)
    return adopted


def _run(plan: Plan, run: RunDir, stage: Stage, executors: Executors, reporter: Reporter) -> Manifest:
    """Run one stage in its own process and wait for its manifest."""
    folder = run.stage_dir(stage, plan)
    attempt = folder.new_attempt()
    spec = attempt / "spec.json"
    _spec(plan, run, stage, folder, int(attempt.name)).write(spec)
    run.log_event("stage started", stage=stage.id, attempt=int(attempt.name))
    reporter.started(stage, int(attempt.name))
    log = attempt / "worker.log"
    with _running(executors, stage, spec, log) as process:
        progress = ProgressFile(attempt / "progress.jsonl")
        while (code := process.poll()) is None:
            _report(progress, stage, reporter)
            time.sleep(POLL_SECONDS)
        _report(progress, stage, reporter)
    manifest = folder.manifest()
    if code != 0 or manifest is None or manifest.key != stage.key:
        raise stage_failure(stage, code, attempt)
    run.log_event("stage finished", stage=stage.id, seconds=manifest.seconds)
    reporter.finished(stage, manifest)
    return manifest


@contextlib.contextmanager
def _running(executors: Executors, stage: Stage, spec: Path, log: Path) -> Iterator[Running]:
    """The stage's process, stopped with all its children if this one is interrupted."""
    process = executors.start(stage.kind, spec, log)
    try:
        yield process
    except BaseException:
        process.stop()
        raise


def _spec(plan: Plan, run: RunDir, stage: Stage, folder: StageDir, attempt: int) -> StageSpec:
    return StageSpec(
        id=stage.id,
        kind=stage.kind,
        key=stage.key,
        material=stage.material,
        stage_dir=str(folder.path.absolute()),
        attempt=attempt,
        settings={name: _full(value) for name, value in stage.settings.items()},
        inputs={name: _location(run.input_path(value, plan)) for name, value in stage.inputs.items()},
        revisions={name: value.revision for name, value in stage.inputs.items() if isinstance(value, External)},
        runtime={
            "run": run.name,
            "compute": plan.recipe.compute.model_dump(mode="json"),
            "storage": plan.recipe.storage.model_dump(mode="json"),
            "tracking": plan.recipe.tracking.model_dump(mode="json"),
        },
    )


def _full(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


def _location(location: str) -> str:
    """An absolute path where there is such a path; a Hub id as it is."""
    return str(Path(location).absolute()) if Path(location).exists() else location


class ProgressFile:
    """Reads the lines that a stage appends."""

    def __init__(self, path: Path) -> None:
        self._path, self._position = path, 0

    def new_lines(self) -> list[dict[str, Any]]:
        """Complete lines since the last call."""
        try:
            with self._path.open("rb") as handle:
                handle.seek(self._position)
                content = handle.read()
        except OSError:
            return []
        complete = content[: content.rfind(b"\n") + 1]
        self._position += len(complete)
        return [json.loads(line) for line in complete.splitlines()]


def _report(progress: ProgressFile, stage: Stage, reporter: Reporter) -> None:
    for line in progress.new_lines()[-1:]:
        reporter.progress(stage, line["done"], line["total"], line["unit"], line["note"])


def stage_failure(stage: Stage, code: int, attempt: Path) -> SpaError:
    """The error that the stage left behind, or the end of its log where it left none."""
    log = attempt / "worker.log"
    try:
        record = json.loads((attempt / "error.json").read_text())
        kind = EXIT_CODES.get(record["exit_code"], StageError)
        where = (
            record["where"] if record["where"].startswith(stage.id) else f"{stage.id}: {record['where']}".rstrip(": ")
        )
        fix = record["fix"] or f"see {log}"
        return kind(record["what"], where=where, fix=fix)
    except (OSError, ValueError, KeyError):
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return StageError(
            f"its process {how}; last lines of its log: {last_lines(log)}", where=stage.id, fix=f"see {log}"
        )


def last_lines(log: Path) -> str:
    """The end of a log on one line."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return "(no log)"
    return " | ".join(line.strip() for line in lines[-LOG_LINES_SHOWN:] if line.strip()) or "(empty)"
