"""A run's folder: the recipe, the plan, events, and one folder per stage."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from spa_recipes import __version__
from spa_recipes.errors import DAMAGE, DataError, LockedError, RecipeError, SpaError, newer_version, system_error
from spa_recipes.redaction import redacted
from spa_recipes.state import atomic, inside, lock, marker, user_state
from spa_recipes.state.patience import patiently
from spa_recipes.state.reading import is_file, read_json, read_text
from spa_recipes.state.stagedir import MANIFEST, Manifest, StageDir
from spa_recipes.units import for_shell

if TYPE_CHECKING:  # the list of runs reads no recipe, so it does without the schema
    from pydantic import BaseModel

    from spa_recipes.plan import Input, Plan, Stage
    from spa_recipes.recipe.jobs import AnyRecipe
    from spa_recipes.recipe.schema import Recipe

Status = Literal["done", "running", "failed", "interrupted", "waiting"]
SHORT_KEY = 8
RecipeT = TypeVar("RecipeT", bound="BaseModel")
_ADDED_LATER = {"extra_forbidden", "union_tag_invalid"}
"""Kinds of errors of pydantic about a field, or a value of `type`, that this version does not have."""
VERSION = ".version"
"""A file in a run's folder with the version of this package that wrote its plan and its recipe."""
HOLDER = ".holder"
"""A file in a run's folder that names the process that holds the run, for people."""
RECIPE_DIGEST = ".recipe.sha256"
"""A file in a run's folder with the digest of `recipe.yaml` as the run wrote it."""
COMMITS = ".commits.json"
"""A file in a run's folder with what it reads of the Hub: commits by branch or tag, as `Plan.commits`."""
RECIPE_PATH = ".recipe.path"
"""A file in a run's folder that names the file that `recipe.yaml` is a copy of, from the run's folder."""


class Planned(NamedTuple):
    """What a plan on disk says of a stage; `reads` are the ids of the stages whose output it reads."""

    id: str
    kind: str
    key: str
    reads: frozenset[str]

    @property
    def name(self) -> str:
        """Name of the stage's folder, without its number."""
        return f"{self.id}-{self.key[:SHORT_KEY]}"


@dataclass(frozen=True)
class RunDir:
    """The paths of one run. Its status is read from what is on disk and is kept nowhere else.

    Attributes:
        kind: a run, or the work in progress of a job; a folder of another kind is refused.
    """

    path: Path
    kind: marker.Kind = "run"

    @property
    def name(self) -> str:
        """The run's name: its folder's name, with what is not UTF-8 in it as `\\xe9`."""
        return os.fsencode(self.path.name).decode("utf-8", "backslashreplace")

    @property
    def resume_command(self) -> str:
        """The command that goes on with the run, as a shell reads it."""
        return f"spa resume {for_shell(self.path)}"

    def stage_dir(self, stage: Stage, plan: Plan) -> StageDir:
        """`stages/<nn>-<id>-<key>`."""
        planned = _planned(stage)
        existing = self.existing(planned)
        if existing is not None:
            return existing
        number = [other.id for other in plan.stages].index(stage.id)
        return StageDir(self.path / "stages" / f"{number:02d}-{planned.name}")

    def existing(self, stage: Planned) -> StageDir | None:
        """The stage's folder if there is one. Its number is for people; in a changed plan it may be another one."""
        stages = self.path / "stages"
        found = sorted(stages.glob(f"[0-9][0-9]-{stage.name}")) if stages.is_dir() else []
        return StageDir(found[0]) if found else None

    def input_path(self, value: Input, plan: Plan) -> str:
        """Where a stage finds an input; a Hub id stays as it is."""
        from spa_recipes.plan import StageOutput

        if isinstance(value, StageOutput):
            return str(self.stage_dir(plan.stage(value.stage), plan).output / value.path)
        return value.location

    def is_done(self, stage: Stage, plan: Plan) -> bool:
        """Whether the stage is committed under the plan's key, with all that other stages still have to read."""
        folder = self.stage_dir(stage, plan)
        if folder.has_all(stage.key):
            return True
        return folder.is_done(stage.key) and stage.id in self.done([_planned(other) for other in plan.stages])

    def done(self, stages: Sequence[Planned]) -> set[str]:
        """Ids of the stages that need not run. A pruned stage is one of them if all stages that read it are.

        The newest policy is what the run is for, so it has to be whole even if nothing reads it.
        """
        from spa_recipes.plan import KINDS

        done = set[str]()
        newest = [stage.id for stage in stages if KINDS[stage.kind].policy][-1:]
        for stage in reversed(stages):  # readers come after what they read
            folder = self.existing(stage)
            if folder is None or not folder.is_done(stage.key):
                continue
            read_by = [other.id for other in stages if stage.id in other.reads]
            if folder.has_all(stage.key) or (stage.id not in newest and done.issuperset(read_by)):
                done.add(stage.id)
        return done

    def manifests(self, plan: Plan) -> dict[str, Manifest]:
        """Manifests of the committed stages, by id, in the order of the plan."""
        found = {stage.id: self.stage_dir(stage, plan).manifest() for stage in plan.stages if self.is_done(stage, plan)}
        return {name: manifest for name, manifest in found.items() if manifest is not None}

    def status(self, stage: Stage, plan: Plan) -> Status:
        """The state of a stage.

        `done` if it has a valid manifest. Otherwise its newest attempt tells: `failed` if that left an error, else
        `running` or `interrupted` by whether a process holds the run; `waiting` if there was no attempt.
        """
        return "done" if self.is_done(stage, plan) else self.status_unfinished(self.stage_dir(stage, plan))

    def status_unfinished(self, folder: StageDir) -> Status:
        """`status` of a stage that is not done."""
        attempts = folder.attempts()
        if not attempts:
            return "waiting"
        if next(attempts[-1].glob("error*.json"), None) is not None:
            return "failed"
        return "running" if self.holder() is not None and self._is_newer(attempts[-1]) else "interrupted"

    def _is_newer(self, attempt: Path) -> bool:
        """Whether an attempt began after a process took the run, which else has not come to the stage yet."""
        try:
            return (attempt / "spec.json").stat().st_mtime_ns >= (self.path / HOLDER).stat().st_mtime_ns
        except OSError:  # one of the two is not written yet, or could not be
            return True

    def write_recipe(self, text: str | None, recipe: AnyRecipe, plan: Plan, *, path: Path | None = None) -> None:
        """Write the recipe as given, the resolved recipe and the plan, before the first stage starts.

        A run that begins here is noted as one that this user started; one that is there already stays what it is.

        Args:
            text: None leaves `recipe.yaml` as it is.
            path: where the text was read.
        """
        if not any(os.path.lexists(self.path / name) for name in ("stages", "plan.json", "resolved.json")):
            atomic.make_folder(self.path)
            user_state.note_run(self.path)
        (self.path / "stages").mkdir(parents=True, exist_ok=True)
        if text is not None:
            digest = self.path / RECIPE_DIGEST
            digest.unlink(missing_ok=True)  # a kill in between leaves no digest of another text
            atomic.write_text(self.path / "recipe.yaml", text)
            atomic.write_text(digest, f"{sha256(text.encode()).hexdigest()}\n")
            (self.path / RECIPE_PATH).unlink(missing_ok=True)
            if path is not None:
                here = os.path.relpath(path.absolute(), self.path.absolute())  # a run does not know where it is
                atomic.write_bytes(self.path / RECIPE_PATH, os.fsencode(here))
        atomic.write_text(self.path / VERSION, f"{__version__}\n")
        if plan.commits:  # before the plan, which without them would be that of an earlier version
            atomic.write_json(self.path / COMMITS, plan.commits)
        atomic.write_json(self.path / "plan.json", plan_json(plan))
        atomic.write_json(self.path / "resolved.json", recipe.model_dump(mode="json"))

    def texts_written(self) -> dict[Path, str]:
        """The digest of `recipe.yaml` as the run wrote it, by its path; empty if an earlier version wrote it."""
        try:
            return {self.path / "recipe.yaml": read_text(self.path / RECIPE_DIGEST).strip()}
        except (OSError, ValueError):
            return {}

    def recipe_file_now(self) -> tuple[Path, bool] | None:
        """The file that the recipe was read from, and whether it still has that text; None if it is not there."""
        try:
            path = Path(os.path.normpath(self.path.absolute() / read_text(self.path / RECIPE_PATH)))
            digest = sha256(read_text(path).encode()).hexdigest()
            return path, digest == read_text(self.path / RECIPE_DIGEST).strip()
        except (OSError, ValueError):
            return None

    @property
    def written_by(self) -> str:
        """The version of this package that wrote the plan and the recipe; empty where that is not known."""
        try:
            version = read_text(self.path / VERSION).strip()
        except (OSError, ValueError):
            return ""
        return version if re.fullmatch(r"[0-9][0-9A-Za-z.+-]{0,40}", version) else ""

    def recipe(self) -> Recipe | None:
        """The resolved recipe of the run, None if the folder holds no run.

        Raises:
            RecipeError: `resolved.json` was altered into something that is no recipe.
            NewerVersionError: a newer version wrote it. TryAgainError: it cannot be read.
        """
        from spa_recipes.recipe.schema import Recipe

        return self.resolved(Recipe)

    def resolved(self, kind: type[RecipeT]) -> RecipeT | None:
        """`resolved.json` as a recipe of this kind, with the errors of `recipe`."""
        from pydantic import ValidationError

        path = self.path / "resolved.json"
        try:
            return kind.model_validate(patiently(read_json, path))
        except OSError:
            return None
        except ValidationError as error:
            wrong = [(each["type"], ".".join(map(str, each["loc"]))) for each in error.errors()]
            if all(what in _ADDED_LATER for what, _ in wrong):
                raise newer_version(wrong[0][1], str(path), self.written_by) from None
            reason = f"{wrong[0][1]}: {error.errors()[0]['msg']}"
        except ValueError as error:
            reason = str(error).splitlines()[0]
        raise RecipeError(
            f"not a recipe of this version: {reason}",
            where=str(path),
            fix="start again from the recipe with `spa run`",
        )

    def planned(self) -> list[Planned]:
        """The stages of the stored plan, whichever version wrote it.

        Raises:
            RecipeError: `plan.json` is missing, damaged or altered.
            NewerVersionError: a newer version wrote it. TryAgainError: it cannot be read.
        """
        path = self.path / "plan.json"
        try:
            stages = _read_plan(patiently(read_json, path), str(path), self.written_by)
        except DAMAGE:
            stages = []
        if not stages:
            raise RecipeError(
                "the run's plan cannot be read", where=str(path), fix="write it again from the recipe with `spa run`"
            )
        return stages

    @property
    def final(self) -> Path:
        """The model of the last stage with its card, made when the run is complete: see `spa_recipes.run.final`."""
        return self.path / "final"

    def log_event(self, event: str, **facts: Any) -> None:
        """Append a line to `events.jsonl`, without secrets."""
        line = json.dumps({"time": round(time.time(), 3), "event": event, **facts}, ensure_ascii=False)
        atomic.append_line(self.path / "events.jsonl", redacted(line))

    def check(self) -> None:
        """Refuse a folder in which a link leads elsewhere; `final` shows the model by links, which nothing writes to.

        Raises:
            DataError: there is a link, a pipe or a device in the place of a file.
        """
        inside.check(self.path, may_be_linked=lambda name: name == "final" or name.startswith(".final."))

    @property
    def is_closed(self) -> bool:
        """Whether `check` has nothing against the folder."""
        with suppress(DataError):
            self.check()
            return True
        return False

    def holder(self) -> str | None:
        """`host pid` of the process that holds the run, None if it is free."""
        return self._holder_note() if lock.is_held(self.path) else None

    def _holder_note(self) -> str:
        try:
            return (self.path / HOLDER).read_text().strip() or "another process"
        except OSError:
            return "another process"

    @property
    def is_read_only(self) -> bool:
        """Whether the folder exists and cannot be written."""
        return self.path.is_dir() and not os.access(self.path, os.W_OK)

    @contextmanager
    def locked(self) -> Iterator[Callable[[], None]]:
        """Hold the run; its folder is made and marked. If the process dies, however it dies, the run becomes free.

        Yields a check, to be called now and then: it raises LockedError if the run was lost to another process.

        Raises:
            LockedError: another process holds it.
            RecipeError: something else is in the folder.
            DataError: the folder cannot be written, or a link in it leads elsewhere.
            TryAgainError: the disk is full or broken.
        """
        marker.refuse_foreign(self.path, self.kind)
        self.check()
        with ExitStack() as stack:
            try:
                marker.claim(self.path, self.kind)
                check = stack.enter_context(lock.hold(self.path))
            except lock.TakenError:
                raise self._in_use("the run is in use by") from None
            except OSError as error:
                raise _refused(error, self.path) from error
            stack.callback(self._remove_note)
            with suppress(OSError):  # a note for people; `spa gc` has to work where the disk is full
                atomic.write_text(self.path / HOLDER, f"{os.uname().nodename} pid {os.getpid()}\n")
            yield partial(self._check, check)

    def _check(self, check: Callable[[], None]) -> None:
        try:
            check()
        except lock.TakenError:
            raise self._in_use("this process slept too long, and the run was taken over by") from None

    def _in_use(self, what: str) -> LockedError:
        return LockedError(f"{what} {self._holder_note()}", where=str(self.path), fix="wait for it, or stop it first")

    def _remove_note(self) -> None:
        with suppress(OSError):  # what went wrong before counts
            (self.path / HOLDER).unlink(missing_ok=True)


def _refused(error: OSError, folder: Path) -> SpaError:
    """Why a run's folder cannot be made or held."""
    from spa_recipes.run.disk import full_disk, is_full

    if is_full(error):
        return full_disk(error, folder, where=folder.name)
    return system_error(error, place=str(folder), fix="choose another --run-dir")


def _planned(stage: Stage) -> Planned:
    from spa_recipes.plan import StageOutput

    reads = frozenset(value.stage for value in stage.inputs.values() if isinstance(value, StageOutput))
    return Planned(stage.id, stage.kind, stage.key, reads)


def _read_plan(entries: list[dict[str, Any]], where: str, version: str) -> list[Planned]:
    """Stages from `plan_json`; ValueError, KeyError, TypeError or AttributeError if it is not as it was written."""
    from spa_recipes.plan import KINDS
    from spa_recipes.plan.keys import SCHEME, stage_key

    for entry in entries:
        if unknown := entry.keys() - _PLANNED:
            raise newer_version(min(unknown), where, version)
        if entry["material"].get("scheme", 0) > SCHEME:
            raise newer_version(f"scheme {entry['material']['scheme']}", where, version)
    if any(stage_key(entry["material"]) != entry["key"] for entry in entries):
        raise ValueError("a key was altered")
    if any(entry["kind"] not in KINDS for entry in entries):
        raise ValueError("a kind of stage that this version does not have")
    return [
        Planned(
            _stage_id(entry["id"]),
            entry["kind"],
            entry["key"],
            frozenset(_sources(entry)),
        )
        for entry in entries
    ]


def _sources(entry: dict[str, Any]) -> Iterator[str]:
    """Ids of the stages whose output a planned stage reads."""
    for name, value in entry["inputs"].items():
        identity = entry["material"]["inputs"][name]  # a key of another stage, or a fingerprint such as `sha256:...`
        if ":" not in identity.split("/")[0]:
            yield value.split("/")[0]


def _stage_id(value: object) -> str:
    """A stage's id as this package gives them, which names its folder; ValueError for anything else."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_]+(-[A-Za-z0-9_]+)*", value):
        raise ValueError("not the id of a stage")
    return value


_PLANNED = {"id", "kind", "role", "key", "inputs", "waits_for", "rows", "material"}
"""What `plan_json` writes of a stage."""


def plan_json(plan: Plan) -> list[dict[str, Any]]:
    """A plan for people and scripts: ids, roles, inputs, what each stage waits for, keys."""
    return [
        {
            "id": stage.id,
            "kind": stage.kind,
            "role": stage.role,
            "key": stage.key,
            "inputs": {name: str(value) for name, value in stage.inputs.items()},
            "waits_for": list(stage.waits_for),
            "rows": stage.rows,
            "material": stage.material,
        }
        for stage in plan.stages
    ]


def all_runs(runs_dir: Path) -> list[RunDir]:
    """The runs in a folder, most recently touched first."""
    if not runs_dir.is_dir():
        return []
    found = [RunDir(path) for path in runs_dir.iterdir() if is_file(path / "resolved.json")]
    return sorted(found, key=lambda run: (last_touched(run), run.name), reverse=True)


def last_touched(run: RunDir) -> float:
    """Time of the newest event of a run, in seconds since the epoch."""
    try:
        return (run.path / "events.jsonl").stat().st_mtime
    except OSError:
        return 0.0


Whose = Literal["own", "all"]


def find_reusable(
    runs_dir: Path, stage: Stage, besides: RunDir, whose: Whose, *, deep: bool = True
) -> tuple[str, StageDir] | None:
    """A finished stage with the same key and its whole output, in another run of the same runs_dir.

    Args:
        whose: `own` takes only runs that this user started, as anybody can write a folder that looks like a run.
        deep: also compares digests.
    """
    for run, folder in _finished_elsewhere(runs_dir, stage, besides):
        if whose == "all" or user_state.started_here(run.path):
            with suppress(SpaError):  # it cannot be read
                if not folder.problems(deep=deep):
                    return run.name, folder
    return None


def owned_by_others(runs_dir: Path, stage: Stage, besides: RunDir) -> str | None:
    """The name of a run that has the finished stage and that this user did not start; None if there is none."""
    found = _finished_elsewhere(runs_dir, stage, besides)
    return next((run.name for run, _ in found if not user_state.started_here(run.path)), None)


def _finished_elsewhere(runs_dir: Path, stage: Stage, besides: RunDir) -> Iterator[tuple[RunDir, StageDir]]:
    for manifest in sorted(runs_dir.glob(f"*/stages/*-{stage.key[:SHORT_KEY]}/{MANIFEST}")):
        run, folder = RunDir(manifest.parents[2]), StageDir(manifest.parent)
        if run.path.resolve() == besides.path.resolve() or not run.is_closed:
            continue
        with suppress(SpaError):  # it cannot be read, or a newer version wrote it
            if folder.has_all(stage.key):
                yield run, folder
