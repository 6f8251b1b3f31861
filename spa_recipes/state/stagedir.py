"""A stage's folder: spec, attempts, work in progress, output, and the manifest that commits it.

`manifest.json` is written last. A folder with a valid manifest is done; one without is not, whatever else is in it.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spa_recipes.state import atomic
from spa_recipes.state.digests import file_digest, files_below

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and sha256 of an output file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a finished stage produced.

    Attributes:
        material: what the key was made from (see `spa_recipes.keys.key_material`).
        files: output files by path relative to `output/`.
        rows: rows produced; tokens: tokens processed; seconds: wall clock of the attempt that finished.
        metrics: key figures by name.
        versions: library versions of the worker.
        reused_from: run that the stage was taken over from, empty if it was computed here.
    """

    id: str
    kind: str
    key: str
    material: dict[str, Any]
    files: dict[str, FileRecord]
    rows: int
    tokens: int
    seconds: float
    metrics: dict[str, Any]
    versions: dict[str, str]
    finished_at: str
    attempt: int
    reused_from: str = ""

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Parse; ValueError, TypeError or KeyError if it is not a manifest."""
        value = json.loads(text)
        value["files"] = {name: FileRecord(**record) for name, record in value["files"].items()}
        return cls(**value)

    def to_json(self) -> dict[str, Any]:
        """JSON form, in the order of the fields."""
        return asdict(self)


@dataclass(frozen=True)
class StageDir:
    """Paths of one stage below `stages/` of a run."""

    path: Path

    @property
    def output(self) -> Path:
        """Committed results."""
        return self.path / "output"

    @property
    def draft(self) -> Path:
        """Results before the commit."""
        return self.path / "output.draft"

    @property
    def work(self) -> Path:
        """Progress that survives an interruption: shards and checkpoints."""
        return self.path / "work"

    def attempts(self) -> list[Path]:
        """Folders of all attempts, oldest first."""
        folder = self.path / "attempts"
        return sorted(folder.iterdir(), key=lambda path: int(path.name)) if folder.is_dir() else []

    def new_attempt(self) -> Path:
        """Make the next attempt's folder; logs of earlier attempts stay as they are."""
        past = self.attempts()
        attempt = self.path / "attempts" / str(int(past[-1].name) + 1 if past else 1)
        attempt.mkdir(parents=True)
        return attempt

    def manifest(self) -> Manifest | None:
        """The manifest, or None if there is none or it cannot be read."""
        try:
            return Manifest.from_json((self.path / MANIFEST).read_text())
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def problems(self, *, deep: bool) -> list[str]:
        """What is wrong with a stage that has a manifest: missing or resized files, with `deep` also altered ones."""
        manifest = self.manifest()
        if manifest is None:
            return ["manifest missing or damaged"]
        found = []
        for name, record in manifest.files.items():
            file = self.output / name
            if not file.is_file():
                found.append(f"output/{name} is missing")
            elif file.stat().st_size != record.size:
                found.append(f"output/{name} has {file.stat().st_size} bytes instead of {record.size}")
            elif deep and file_digest(file) != record.sha256:
                found.append(f"output/{name} was altered")
        return found

    def is_done(self, key: str) -> bool:
        """Whether the stage is committed under this key (files are there with the right sizes)."""
        manifest = self.manifest()
        return manifest is not None and manifest.key == key and not self.problems(deep=False)

    def set_aside(self) -> Path:
        """Move a damaged stage out of the way, keeping it for inspection."""
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.damaged-{number}")).exists():
            number += 1
        self.path.rename(aside)
        return aside

    def commit(self, manifest_fields: dict[str, Any]) -> Manifest:
        """Turn the draft into the output and write the manifest, in that order."""
        records = {
            file.relative_to(self.draft).as_posix(): FileRecord(file.stat().st_size, file_digest(file))
            for file in files_below(self.draft)
        }
        manifest = Manifest(files=records, **manifest_fields)
        atomic.fsync_tree(self.draft)
        if self.output.exists():
            shutil.rmtree(self.output)
        self.draft.rename(self.output)
        atomic.fsync_dir(self.path)
        atomic.write_json(self.path / MANIFEST, manifest.to_json())
        return manifest


def adopt(source: StageDir, target: StageDir, run_name: str) -> None:
    """Take over a finished stage of another run: files are hard-linked, or copied where that is not possible."""
    manifest = source.manifest()
    assert manifest is not None
    shutil.rmtree(target.path, ignore_errors=True)
    target.draft.mkdir(parents=True)
    for name in manifest.files:
        destination = target.draft / name
        destination.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source.output / name, destination)
        except OSError:
            shutil.copy2(source.output / name, destination)
    target.draft.rename(target.output)
    atomic.write_json(target.path / MANIFEST, {**manifest.to_json(), "reused_from": run_name})
