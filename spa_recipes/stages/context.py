"""What a stage is given (a frozen spec, folders, a way to report progress) and what it returns."""

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from spa_recipes.redaction import redacted
from spa_recipes.state import atomic, claims
from spa_recipes.state.patience import patiently
from spa_recipes.state.reading import read_json
from spa_recipes.state.stagedir import WORKER_DRAFT, StageDir
from spa_recipes.state.watchdog import Watchdog

_ABOVE = f"..{os.sep}"

POOL = "SPA_POOL"
"""Environment of a worker of a pool: its name."""
DONE = "done"
"""Beginning of the name of the mark that a worker of a pool leaves when every shard of the stage is there."""


class Result(NamedTuple):
    """Rows produced, tokens processed, and key figures by name (JSON values)."""

    rows: int
    tokens: int
    metrics: dict[str, Any]


NO_RESULT = Result(0, 0, {})
"""What every process but the first returns where the first one writes the output for all."""


@dataclass(frozen=True)
class StageSpec:
    """Everything a stage process knows, as written by the runner.

    Attributes:
        settings: sections of the recipe, with their runtime fields, in JSON form.
        inputs: paths (or Hub ids) by role.
        revisions: Hub revisions of inputs that have one.
        keys: the settings that name inputs from outside the run, by role.
        runtime: the recipe's compute, storage and tracking sections, and the run's name.
    """

    id: str
    kind: str
    key: str
    material: dict[str, Any]
    stage_dir: str
    attempt: int
    settings: dict[str, Any]
    inputs: dict[str, str]
    revisions: dict[str, str | None]
    keys: dict[str, str]
    runtime: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> "StageSpec":
        """Read a spec file: `attempts/<n>/spec.json` of a stage.

        Raises:
            TryAgainError: it cannot be read.
        """
        value = patiently(read_json, path)
        stage_dir = path.absolute().parents[2]
        inputs = {
            name: os.path.normpath(stage_dir / place) if place.startswith(_ABOVE) else place
            for name, place in value["inputs"].items()
        }
        return cls(**{**value, "stage_dir": str(stage_dir), "inputs": inputs})

    def write(self, path: Path) -> None:
        """Write a spec file. Paths inside the run's folder are relative to the stage's, so that a run can be moved."""
        stages = Path(self.stage_dir).parent
        inputs = {
            name: os.path.relpath(place, self.stage_dir) if Path(place).is_relative_to(stages) else place
            for name, place in self.inputs.items()
        }
        atomic.write_json(path, {**self.__dict__, "stage_dir": ".", "inputs": inputs})


@dataclass
class Pace:
    """How fast a stage's work went: of each part of it, when progress was first and last told.

    Attributes:
        begun: when the process began to work on the stage, by `time.monotonic`.
        parts: of each part of the work, at the first, the second and the last report of progress: seconds since then,
            and units done.
        checkpoint: bytes of the largest checkpoint that it wrote.
    """

    begun: float = field(default_factory=time.monotonic)
    parts: list[list[tuple[float, int]]] = field(default_factory=list)
    _unit: str = ""
    checkpoint: int = 0

    def note(self, now: float, done: int, unit: str) -> None:
        """Progress. Another part begins where the units are others, or are counted anew."""
        if unit != self._unit or done < self.parts[-1][-1][1]:
            self._unit = unit
            self.parts.append([])
        self.parts[-1] = [*self.parts[-1][:2], (now - self.begun, done)]


@dataclass
class Context:
    """Everything that a stage works with.

    Attributes:
        rank, world_size: of processes that do the stage together, as torch's launchers start them.
        pool: name of this process in a pool, whose workers take shards and commit nothing; None outside of one.
    """

    spec: StageSpec
    rank: int = 0
    world_size: int = 1
    pool: str | None = None
    watchdog: Watchdog | None = None
    pace: Pace = field(default_factory=Pace, repr=False)
    _last_report: float = field(default=0.0, repr=False)

    @property
    def folder(self) -> StageDir:
        """The stage's folder."""
        return StageDir(Path(self.spec.stage_dir))

    @property
    def draft(self) -> Path:
        """The folder for output; it becomes `output/` when the stage is committed.

        That of a worker of a pool is for what it needs on the way, and goes when it ends.
        """
        if self.pool is not None:
            return self.own_file(WORKER_DRAFT)
        return self.folder.draft(self.spec.attempt)

    @property
    def work(self) -> Path:
        """The folder for progress from which another attempt can continue."""
        folder = self.folder.work
        atomic.make_folder(folder)
        return folder

    @property
    def attempt_dir(self) -> Path:
        """Logs, progress and error of this attempt."""
        return self.folder.path / "attempts" / str(self.spec.attempt)

    @property
    def process(self) -> str:
        """Name of this process in the names of its own files; empty for the first one, which commits."""
        return self.pool or (str(self.rank) if self.rank else "")

    @property
    def commits(self) -> bool:
        """Whether this process makes the draft and commits it."""
        return not self.process

    def takes(self, what: str) -> bool:
        """Whether this process does a piece of work that one process of the stage does for all.

        Args:
            what: names the work, as a file below a folder. In a pool, whoever asks first has it, until it is freed.
        """
        if self.pool is not None:
            return claims.claim(self._claim(what), self.pool)
        return self.rank == 0

    def gives_back(self, what: str) -> None:
        """Give up what `takes` gave, which is done."""
        if self.pool is not None:
            self._claim(what).unlink(missing_ok=True)

    def _claim(self, what: str) -> Path:
        return self.attempt_dir / claims.CLAIMS / f"{what}.claim"

    def own_file(self, name: str) -> Path:
        """A file of the attempt that only this process writes, as processes on several hosts share no file."""
        path = self.attempt_dir / name
        return path.with_stem(f"{path.stem}-{self.process}") if self.process else path

    def input(self, name: str) -> Path:
        """Path of an input on this disk."""
        return Path(self.spec.inputs[name])

    def located(self, source: dict[str, Any], name: str) -> dict[str, Any]:
        """The section of a data source with place and revision of this stage's input `name`.

        The sandbox has none, and a list names its places itself.
        """
        if not isinstance(source.get("source"), str):
            return source
        return {**source, "source": self.spec.inputs[name], "revision": self.spec.revisions.get(name)}

    def progress(self, done: int, total: int, unit: str, note: str = "") -> None:
        """Tell the runner how far the stage is; at most ten lines a second are written to the file."""
        now = time.monotonic()
        self.pace.note(now, done, unit)
        if now - self._last_report < 0.1 and done < total:
            return
        self._last_report = now
        if self.watchdog is not None:
            self.watchdog.feed()
        if self.rank == 0 or self.pool is not None:
            self._tell({"done": done, "total": total, "unit": unit, "note": note, "time": round(time.time(), 3)})

    def notice(self, text: str) -> None:
        """Tell a person something: in the stage's log, on the console and in the run's events."""
        print(text, flush=True)
        if self.watchdog is not None:
            self.watchdog.feed()
        self._tell({"notice": text})

    def _tell(self, line: dict[str, Any]) -> None:
        with self.own_file("progress.jsonl").open("a") as handle:
            handle.write(redacted(json.dumps(line)) + "\n")

    @classmethod
    def from_environment(cls, spec: StageSpec) -> "Context":
        """The worker's name in a pool, or rank and world size from the variables of torch's launchers."""
        if POOL in os.environ:
            return cls(spec, pool=os.environ[POOL])
        return cls(spec, int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
