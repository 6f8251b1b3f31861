"""Drives a plan: reuse what is there, run what is not, stop at the first failure."""

import contextlib
import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from pydantic import BaseModel

from spa_recipes.errors import EXIT_CODES, DataError, RecipeChangedError, SpaError, StageError, TryAgainError
from spa_recipes.plan import MODEL, External, Plan, Stage
from spa_recipes.plan.keys import SCHEME, differences, with_defaults
from spa_recipes.run import final
from spa_recipes.run.decay import Decay, judge_decay
from spa_recipes.run.disk import free_bytes, full_disk, is_full, room_needed
from spa_recipes.run.executors import Executors, Running, VllmProcesses, vllm_processes_of
from spa_recipes.run.memory import smaller
from spa_recipes.run.rundir import RunDir, find_reusable
from spa_recipes.stages.context import StageSpec
from spa_recipes.state.stagedir import Manifest, StageDir, adopt

POLL_SECONDS = 0.05
LOG_LINES_SHOWN, LOG_LINE_LENGTH = 8, 200
NO_ROOM_FOR_AN_ERROR = 64 * 1024
"""Free bytes below which a worker cannot be expected to have written down what happened."""


class Reporter(Protocol):
    """Who is told what happens."""

    def reused(self, stage: Stage, manifest: Manifest, *, adopted: bool) -> None:
        """A finished stage is used again, of this run or (`adopted`) of another."""

    def damaged(self, stage: Stage, problems: list[str], aside: Path) -> None:
        """A finished stage was altered since; it was set aside and will be done again."""

    def started(self, stage: Stage, attempt: int) -> None:
        """A stage's process was started."""

    def noticed(self, stage: Stage, text: str) -> None:
        """The running stage found something that a person should know, such as a damaged shard."""

    def progress(self, stage: Stage, done: int, total: int, unit: str, note: str) -> None:
        """How far the running stage is."""

    def finished(self, stage: Stage, manifest: Manifest) -> None:
        """A stage was committed."""


Describe = Callable[[Plan, Mapping[str, Manifest]], dict[str, str]]
"""Writes what goes beside the final model, by file name, from the manifests of a finished run."""


class Outcome(NamedTuple):
    """Manifests of the finished stages in order.

    `complete` if nothing is left to do: the whole plan is done, or `decay` says why the rest of it is not wanted.
    """

    manifests: dict[str, Manifest]
    complete: bool
    seconds: float
    decay: Decay | None = None


def execute(
    plan: Plan,
    run: RunDir,
    recipe_text: str,
    *,
    until: str | None,
    accept: bool,
    reporter: Reporter,
    executors: Executors | None = None,
    describe: Describe | None = None,
) -> Outcome:
    """Run the plan in `run`, or what is left of it; `executors` are those of a caller that has several runs.

    `describe` writes the texts beside the final model of a run that is complete; None leaves it without.

    Raises:
        LockedError: another process holds the run.
        RecipeChangedError: the run was started with another recipe and `accept` is False.
        TryAgainError: the disk is full or too small; DataError: nothing can be written, and something is to be done.
        SpaError: a stage failed; its class gives the exit code.
    """
    begin = time.monotonic()
    stages = plan.until(until)
    if run.is_read_only:
        refuse_changes(plan, run)
        manifests, decay = _in_order(plan, stages, lambda stage: _finished(plan, run, stage, reporter))
    else:
        starts = executors or Executors(plan.recipe.compute.executor)
        try:
            with run.locked():
                if not accept:
                    refuse_changes(plan, run)
                manifests, decay = _go_on(plan, run, recipe_text, stages, starts, reporter, describe)
        except OSError as error:
            if is_full(error):
                raise full_disk(error, run.path, where=run.name) from error
            raise
        finally:
            if executors is None:
                starts.close()
    complete = decay is not None or len(stages) == len(plan.stages)
    return Outcome(manifests, complete, time.monotonic() - begin, decay)


Done = tuple[dict[str, Manifest], Decay | None]
"""Manifests of the stages that are done, and the reason to do no more."""


def _go_on(
    plan: Plan,
    run: RunDir,
    recipe_text: str,
    stages: Sequence[Stage],
    executors: Executors,
    reporter: Reporter,
    describe: Describe | None,
) -> Done:
    """Do what is to be done in a run that this process holds."""
    run.write_recipe(recipe_text, plan.recipe, plan)
    run.log_event("run started", stages=[stage.id for stage in stages])
    try:
        manifests, decay = _in_order(
            plan,
            stages,
            lambda stage: _reuse(plan, run, stage, reporter) or _run(plan, run, stage, executors, reporter),
        )
    except BaseException as error:
        with contextlib.suppress(OSError):  # what stopped the run counts, not that the disk has no room to note it
            run.log_event("run stopped", reason=f"{type(error).__name__}: {error}".splitlines()[0])
        raise
    complete = decay is not None or len(stages) == len(plan.stages)
    made = plan.newest_model(manifests)
    if complete and made is not None:
        final.show(run, run.stage_dir(made, plan).output / MODEL, describe(plan, manifests) if describe else {})
    run.log_event("run finished" if complete else "run paused", **({"reason": str(decay)} if decay else {}))
    return manifests, decay


def _in_order(plan: Plan, stages: Sequence[Stage], do: Callable[[Stage], Manifest]) -> Done:
    """Do the stages one after the other, until the stop rule says that the rest is not wanted."""
    manifests: dict[str, Manifest] = {}
    for stage in stages:
        decay = judge_decay(plan, manifests)
        if decay is not None and decay.stage == stage.id:
            return manifests, decay
        manifests[stage.id] = do(stage)
    return manifests, None


def refuse_changes(plan: Plan, run: RunDir) -> None:
    """Compare the plan with the one that the run was started with.

    Raises:
        RecipeChangedError: some stage would have another key.
    """
    if _has_other_keys(run):
        raise RecipeChangedError(
            "the run was made by a version of spa-recipes that names results by other keys, so none of its stages "
            "can be used again",
            where=str(run.path),
            fix="finish it with that version, do all stages again with --accept, or choose another name or --run-dir",
        )
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
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"plan.json, which would tell, cannot be read ({error})"]
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
        lines = differences(_readable(stored[stage.id]["material"], stage), _readable(stage.material, stage))
        own = [line for line in lines if not _is_upstream(line, stage)]
        changes += [f"{stage.id}: {line}" for line in own]
    return changes


def _readable(material: dict[str, Any], stage: Stage) -> dict[str, Any]:
    """Key material with the defaults that keys leave out."""
    return {**material, "settings": with_defaults(material["settings"], stage.settings)}


def _has_other_keys(run: RunDir) -> bool:
    """Whether the stored plan was made in another scheme of keys; False where it cannot be read."""
    try:
        stored = json.loads((run.path / "plan.json").read_text())
        return any(entry["material"].get("scheme") != SCHEME for entry in stored)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _is_upstream(line: str, stage: Stage) -> bool:
    """Whether a difference only repeats that an earlier stage changed."""
    name = line.removeprefix("inputs.").split(":")[0]
    return line.startswith("inputs.") and not isinstance(stage.inputs.get(name), External)


def _finished(plan: Plan, run: RunDir, stage: Stage, reporter: Reporter) -> Manifest:
    """The stage's manifest, in a folder that cannot be written; DataError if it would have to run."""
    folder = run.stage_dir(stage, plan)
    manifest = folder.manifest()
    if manifest is None or not run.is_done(stage, plan) or folder.problems(deep=True):
        raise DataError(
            f"nothing can be written there, and {stage.id} is still to be done",
            where=str(run.path),
            fix="make the folder writable, or copy it to another place",
        )
    reporter.reused(stage, manifest, adopted=False)
    return manifest


def _reuse(plan: Plan, run: RunDir, stage: Stage, reporter: Reporter) -> Manifest | None:
    """The stage's manifest if it need not run: done here, or in another run of the same folder."""
    folder = run.stage_dir(stage, plan)
    manifest = folder.manifest()
    if manifest is not None or (folder.path / "manifest.json").exists():
        problems = folder.problems(deep=True) or _missed(plan, run, stage)
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


def _missed(plan: Plan, run: RunDir, stage: Stage) -> list[str]:
    """Output of a finished stage that was pruned and that another stage has to read now."""
    manifest = run.stage_dir(stage, plan).manifest()
    if manifest is None or not manifest.pruned or run.is_done(stage, plan):
        return []
    return [f"output/{name} was freed by `spa gc --models` and is needed again" for name in manifest.pruned]


def _run(plan: Plan, run: RunDir, stage: Stage, executors: Executors, reporter: Reporter) -> Manifest:
    """Run one stage in its own process and wait for its manifest."""
    folder = run.stage_dir(stage, plan)
    room = room_needed(stage, plan, folder)
    attempt = folder.new_attempt()
    spec = attempt / "spec.json"
    _spec(plan, run, stage, folder, int(attempt.name), room).write(spec)
    run.log_event("stage started", stage=stage.id, attempt=int(attempt.name))
    reporter.started(stage, int(attempt.name))
    log = attempt / "worker.log"
    with _running(executors, stage, spec, log, vllm_processes_of(stage, plan.recipe.compute)) as process:
        progress = ProgressFile(attempt / "progress.jsonl")
        while (code := process.poll()) is None:
            _report(progress, run, stage, reporter)
            time.sleep(POLL_SECONDS)
        _report(progress, run, stage, reporter)
    manifest = folder.manifest()
    if code != 0 or manifest is None or manifest.key != stage.key:
        raise stage_failure(stage, code, attempt)
    run.log_event("stage finished", stage=stage.id, seconds=manifest.seconds)
    reporter.finished(stage, manifest)
    return manifest


@contextlib.contextmanager
def _running(
    executors: Executors, stage: Stage, spec: Path, log: Path, vllm: VllmProcesses | None
) -> Iterator[Running]:
    """The stage's process, stopped with all its children if this one is interrupted."""
    process = executors.start(stage.kind, spec, log, vllm)
    try:
        yield process
    except BaseException:
        process.stop()
        raise


def _spec(plan: Plan, run: RunDir, stage: Stage, folder: StageDir, attempt: int, room: int | None) -> StageSpec:
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
        keys={name: value.key for name, value in stage.inputs.items() if isinstance(value, External)},
        runtime={
            "run": run.name,
            "disk_needed": room,
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
        return [line for text in complete.splitlines() if (line := _parsed(text)) is not None]


def _parsed(line: bytes) -> dict[str, Any] | None:
    """A line of progress; None for one that a full disk cut off."""
    try:
        value: dict[str, Any] = json.loads(line)
        return value
    except ValueError:
        return None


def _report(progress: ProgressFile, run: RunDir, stage: Stage, reporter: Reporter) -> None:
    """Pass on every notice and the newest progress."""
    lines = progress.new_lines()
    for notice in (line["notice"] for line in lines if "notice" in line):
        run.log_event("notice", stage=stage.id, text=notice)
        reporter.noticed(stage, notice)
    for line in [line for line in lines if "notice" not in line][-1:]:
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
        return _crash(stage, code, log)


def _crash(stage: Stage, code: int, log: Path) -> SpaError:
    """What can be said of a process that left no error of its own."""
    if free_bytes(log) < NO_ROOM_FOR_AN_ERROR:
        return full_disk(None, log.parent, where=stage.id)
    tail = last_lines(log)
    end = f"last lines of its log: {tail}"
    if code == -signal.SIGKILL or "SIGKILL" in tail:  # of a launcher's child, only the log tells
        settings = {name: _full(value) for name, value in stage.settings.items()}
        return TryAgainError(
            f"its process was killed (SIGKILL), as the kernel does when memory runs out; {end}",
            where=stage.id,
            fix=f"see {log}, and if it was the memory, {smaller(stage.kind, settings)}",
        )
    how = f"was killed by signal {-code} ({_signal_name(-code)})" if code < 0 else f"ended with exit code {code}"
    return StageError(f"its process {how}; {end}", where=stage.id, fix=f"see {log}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def last_lines(log: Path) -> str:
    """The end of a log on one line."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return "(no log)"
    shown = [line.strip() for line in lines if line.strip()][-LOG_LINES_SHOWN:]
    return " | ".join(line if len(line) <= LOG_LINE_LENGTH else line[:LOG_LINE_LENGTH] + "..." for line in shown) or (
        "(empty)"
    )
