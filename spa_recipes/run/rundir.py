"""A run's folder: the recipe, the plan, events, and one folder per stage."""

import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from spa_recipes.errors import DataError, LockedError, RecipeError
from spa_recipes.plan import Input, Plan, Stage, StageOutput
from spa_recipes.recipe.schema import JudgeJob, Recipe
from spa_recipes.state import atomic
from spa_recipes.state.stagedir import MANIFEST, StageDir

Status = Literal["done", "running", "failed", "interrupted", "waiting"]
SHORT_KEY = 8


@dataclass(frozen=True)
class RunDir:
    """Paths of one run. Status is read from what is on disk; nothing here keeps a second account of it."""

    path: Path

    @property
    def name(self) -> str:
        """The run's name: its folder's name."""
        return self.path.name

    def stage_dir(self, stage: Stage, plan: Plan) -> StageDir:
        """`stages/<nn>-<id>-<key>`."""
        stages, name = self.path / "stages", f"{stage.id}-{stage.key[:SHORT_KEY]}"
        for existing in sorted(stages.glob(f"[0-9][0-9]-{name}")):
            return StageDir(existing)  # the number is for people: it does not count when a changed plan renumbers
        number = [other.id for other in plan.stages].index(stage.id)
        return StageDir(stages / f"{number:02d}-{name}")

    def input_path(self, value: Input, plan: Plan) -> str:
        """Where a stage finds an input; a Hub id stays as it is."""
        if isinstance(value, StageOutput):
            return str(self.stage_dir(plan.stage(value.stage), plan).output / value.path)
        return value.location

    def is_done(self, stage: Stage, plan: Plan) -> bool:
        """Whether the stage is committed under the plan's key."""
        return self.stage_dir(stage, plan).is_done(stage.key)

    def status(self, stage: Stage, plan: Plan) -> Status:
        """Valid manifest: done; held lock and a newest attempt without end: running; an attempt's error: failed."""
        folder = self.stage_dir(stage, plan)
        if folder.is_done(stage.key):
            return "done"
        attempts = folder.attempts()
        if not attempts:
            return "waiting"
        if (attempts[-1] / "error.json").exists():
            return "failed"
        return "running" if self.holder() is not None else "interrupted"

    def write_recipe(self, text: str, recipe: Recipe | JudgeJob, plan: Plan) -> None:
        """Keep the recipe as given and as resolved, and the plan, before the first stage starts."""
        (self.path / "stages").mkdir(parents=True, exist_ok=True)
        atomic.write_text(self.path / "recipe.yaml", text)
        atomic.write_json(self.path / "plan.json", plan_json(plan))
        atomic.write_json(self.path / "resolved.json", recipe.model_dump(mode="json"))

    def recipe(self) -> Recipe | None:
        """The resolved recipe of the run, None if the folder holds no run.

        Raises:
            RecipeError: `resolved.json` was altered into something that is no recipe.
        """
        try:
            text = (self.path / "resolved.json").read_text()
        except OSError:
            return None
        try:
            return Recipe.model_validate(json.loads(text))
        except ValueError as error:
            first = str(error).splitlines()[0]
            raise RecipeError(
                f"not a recipe of this version: {first}",
                where=str(self.path / "resolved.json"),
                fix="start again from the recipe with `spa run`",
            ) from None

    @property
    def final(self) -> Path:
        """Link to the model of the last stage, made when the run is complete."""
        return self.path / "final"

    def point_to_final(self, model: Path) -> None:
        """Make or renew the link; relative, so that a moved run keeps it."""
        fresh = self.path / ".final"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(model.relative_to(self.path), target_is_directory=True)
        fresh.replace(self.final)

    def log_event(self, event: str, **facts: Any) -> None:
        """Append a line to `events.jsonl`."""
        line = json.dumps({"time": round(time.time(), 3), "event": event, **facts}, ensure_ascii=False)
        with (self.path / "events.jsonl").open("a") as handle:
            handle.write(line + "\n")

    def holder(self) -> str | None:
        """`host pid` of the process that holds the run, None if it is free."""
        lock = FileLock(self.path / ".lock")
        if not (self.path / ".lock").exists():
            return None
        try:
            with lock.acquire(timeout=0):
                return None
        except Timeout:
            try:
                return (self.path / ".holder").read_text().strip() or "another process"
            except OSError:
                return "another process"
        except OSError:
            return None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run. The operating system frees it when the process dies, however it dies.

        Raises:
            LockedError: another process holds it.
            DataError: the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / ".lock")
            lock.acquire(timeout=0.5)  # `holder` of another process takes it for a moment
        except Timeout:
            holder = self.holder() or "another process"
            raise LockedError(
                f"the run is in use by {holder}", where=str(self.path), fix="wait for it, or stop it first"
            ) from None
        except OSError as error:
            raise DataError(
                f"cannot write there ({error.strerror})", where=str(self.path), fix="choose another --run-dir"
            ) from None
        try:
            atomic.write_text(self.path / ".holder", f"{socket.gethostname()} pid {os.getpid()}\n")
            yield
        finally:
            (self.path / ".holder").unlink(missing_ok=True)
            lock.release()


def plan_json(plan: Plan) -> list[dict[str, Any]]:
    """A plan for people and scripts: ids, roles, inputs, keys."""
    return [
        {
            "id": stage.id,
            "kind": stage.kind,
            "role": stage.role,
            "key": stage.key,
            "inputs": {name: str(value) for name, value in stage.inputs.items()},
            "rows": stage.rows,
            "material": stage.material,
        }
        for stage in plan.stages
    ]


def all_runs(runs_dir: Path) -> list[RunDir]:
    """The runs in a folder, most recently touched first."""
    if not runs_dir.is_dir():
        return []
    found = [RunDir(path) for path in runs_dir.iterdir() if (path / "resolved.json").is_file()]
    return sorted(found, key=lambda run: (last_touched(run), run.name), reverse=True)


def last_touched(run: RunDir) -> float:
    """Time of the newest event of a run, in seconds since the epoch."""
    try:
        return (run.path / "events.jsonl").stat().st_mtime
    except OSError:
        return 0.0


def find_reusable(runs_dir: Path, stage: Stage, besides: RunDir, *, deep: bool = True) -> tuple[str, StageDir] | None:
    """A finished stage with the same key in another run of the same folder; `deep` also compares digests."""
    if not runs_dir.is_dir():
        return None
    for manifest in sorted(runs_dir.glob(f"*/stages/*-{stage.key[:SHORT_KEY]}/{MANIFEST}")):
        run = manifest.parents[2]
        folder = StageDir(manifest.parent)
        if run.resolve() != besides.path.resolve() and folder.is_done(stage.key) and not folder.problems(deep=deep):
            return run.name, folder
    return None


def free_bytes(path: Path) -> int:
    """Free space where `path` is or will be."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
