"""A stage's folder: spec, attempts, work in progress, output, and the manifest that commits it.

`manifest.json` is written last. A folder with a valid manifest is done; one without is not, whatever else is in it.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Container, Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from spa_recipes.errors import DAMAGE, DataError, StageError, newer_version
from spa_recipes.state import atomic, inside
from spa_recipes.state.digests import file_digest, files_below
from spa_recipes.state.patience import patiently, size_of
from spa_recipes.state.reading import read_text

MANIFEST = "manifest.json"
_DRAFT = "output.draft"
WORKER_DRAFT = "draft"
"""Beginning of the name of a folder of an attempt in which a worker of a pool has what it needs on the way."""


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and sha256 of an output file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a finished stage produced.

    Attributes:
        material: what the key was made from (see `spa_recipes.plan.keys.key_material`).
        files: output files by path relative to `output/`.
        rows: rows produced; tokens: tokens processed; seconds: wall clock of the attempt that finished.
        metrics: key figures by name.
        versions: library versions of the worker.
        reused_from: run that the stage was taken over from, empty if it was computed here.
        pruned: files of `files` that were deleted to free their room. The stage counts as done as long as nothing has
            to read them, and no other run can take it over.
        begun_with: versions of libraries under which an earlier attempt worked on it, where those were others.
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
    pruned: tuple[str, ...] = ()
    begun_with: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, text: str, where: str = MANIFEST) -> "Manifest":
        """Parse; ValueError, TypeError or KeyError if it is not a manifest, or not as it was written.

        Raises:
            NewerVersionError: it is as it was written, by a version that knows more.
        """
        value = json.loads(text)
        if value.pop("sha256") != _fields_digest(value):
            raise ValueError("the manifest was altered")
        unknown = value.keys() - _names(cls)
        for record in value["files"].values():
            unknown |= record.keys() - _names(FileRecord)
        if unknown:
            raise newer_version(min(unknown), where, value["versions"].get("spa-recipes", ""))
        value["files"] = {inside.plain(name): FileRecord(**record) for name, record in value["files"].items()}
        value["pruned"] = tuple(value.get("pruned", ()))
        if not value["files"].keys() >= set(value["pruned"]):
            raise ValueError("files were deleted that the stage never had")
        manifest = cls(**value)
        if not manifest.is_typed():
            raise TypeError("a field of the manifest has another type")
        datetime.fromisoformat(manifest.finished_at)
        return manifest

    def is_typed(self) -> bool:
        """Whether every field that other code relies on has its type."""
        numbers = (self.rows, self.tokens, self.seconds, self.attempt, *(record.size for record in self.files.values()))
        texts = (
            self.id,
            self.kind,
            self.key,
            self.finished_at,
            self.reused_from,
            *self.pruned,
            *self.versions.values(),
        )
        return (
            all(isinstance(value, dict) for value in (self.material, self.metrics, self.versions))
            and all(isinstance(value, int | float) and not isinstance(value, bool) for value in numbers)
            and all(isinstance(value, str) for value in (*texts, *(record.sha256 for record in self.files.values())))
        )

    def number(self, name: str) -> float:
        """A figure that is one number.

        Raises:
            DataError: it is missing, or something else.
        """
        value = self.metrics.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise DataError(
                f"{name} is not a number, so the file was altered",
                where=f"{MANIFEST} of {self.id}",
                fix="move that stage's folder away, and `spa resume` makes it again",
            )
        return value

    def to_json(self) -> dict[str, Any]:
        """JSON form, in the order of the fields; the last one is the digest of the others."""
        value: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        if not self.begun_with:
            del value["begun_with"]
        return {**value, "sha256": _fields_digest(value)}


def _names(kind: type[Manifest] | type[FileRecord]) -> set[str]:
    return {each.name for each in fields(kind)}


def _fields_digest(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class StageDir:
    """Paths of one stage below `stages/` of a run."""

    path: Path

    @property
    def output(self) -> Path:
        """Committed results."""
        return self.path / "output"

    def draft(self, attempt: int) -> Path:
        """Results of an attempt before the commit. A process of an earlier one that still runs never writes here."""
        return self.path / f"{_DRAFT}-{attempt}"

    def drafts(self) -> list[Path]:
        """The drafts that are there, of whichever attempt and version, and what lost workers of pools left as such."""
        found = [*self.path.glob(f"{_DRAFT}*"), *self.path.glob(f"attempts/*/{WORKER_DRAFT}-*")]
        return sorted(path for path in found if path.is_dir())

    @property
    def work(self) -> Path:
        """Progress that survives an interruption: shards and checkpoints."""
        return self.path / "work"

    def attempts(self) -> list[Path]:
        """Folders of all attempts, oldest first."""
        folder = self.path / "attempts"
        found = [path for path in folder.iterdir() if path.name.isdecimal()] if folder.is_dir() else []
        return sorted(found, key=lambda path: int(path.name))

    def new_attempt(self) -> Path:
        """Make the next attempt's folder; logs of earlier attempts stay as they are."""
        past = self.attempts()
        attempt = self.path / "attempts" / str(int(past[-1].name) + 1 if past else 1)
        atomic.make_folder(attempt.parent)
        attempt.mkdir()
        return attempt

    def manifest(self) -> Manifest | None:
        """The manifest; None if there is none, or what is there was not written as a manifest.

        Raises:
            TryAgainError: it cannot be read. NewerVersionError: a newer version wrote it.
        """
        path = self.path / MANIFEST
        try:
            return Manifest.from_json(patiently(read_text, path), str(path))
        except (*DAMAGE, RecursionError):
            return None

    def problems(self, *, deep: bool, besides: Container[str] = ()) -> list[str]:
        """What is wrong with a stage that has a manifest: missing or resized files, with `deep` also altered ones.

        The files `besides` are not looked at.

        Raises:
            TryAgainError: a file cannot be read. NewerVersionError: a newer version wrote the manifest.
        """
        return self._problems(lambda name: name not in besides, lambda file: deep)

    def changed(self, below: str) -> list[str]:
        """`problems` of the output below a folder; contents are compared where a file is newer than the manifest."""
        written = (self.path / MANIFEST).stat().st_mtime_ns
        return self._problems(
            lambda name: below == "." or name == below or name.startswith(f"{below}/"),
            lambda file: file.stat().st_mtime_ns > written,
        )

    def _problems(self, is_meant: Callable[[str], bool], is_read: Callable[[Path], bool]) -> list[str]:
        manifest = self.manifest()
        if manifest is None:
            return [f"{MANIFEST} was altered"]
        found = []
        for name, record in manifest.files.items():
            file = self.output / name
            if name in manifest.pruned or not is_meant(name):
                continue
            size = size_of(file)
            if size is None:
                found.append(f"output/{name} is missing")
            elif size != record.size:
                found.append(f"output/{name} has {size} bytes instead of {record.size}")
            elif is_read(file) and file_digest(file) != record.sha256:
                found.append(f"output/{name} was altered")
        return found

    def is_done(self, key: str) -> bool:
        """Whether the stage is committed under this key (files are there with the right sizes)."""
        manifest = self.manifest()
        return manifest is not None and manifest.key == key and not self.problems(deep=False)

    def has_all(self, key: str) -> bool:
        """Whether the stage is done, and nothing of its output was pruned."""
        manifest = self.manifest()
        return manifest is not None and not manifest.pruned and self.is_done(key)

    def set_aside(self) -> Path:
        """Move a damaged stage out of the way, keeping it for inspection."""
        return atomic.move_aside(self.path, self.path.parent)

    def mark_pruned(self, names: Iterable[str]) -> None:
        """Note in the manifest that these output files are given up; they may be deleted after that, not before."""
        manifest = self.manifest()
        assert manifest is not None
        pruned = tuple(sorted({*manifest.pruned, *names}))
        facts = (self.path / MANIFEST).stat()
        atomic.write_json(self.path / MANIFEST, replace(manifest, pruned=pruned).to_json())
        os.utime(self.path / MANIFEST, ns=(facts.st_atime_ns, facts.st_mtime_ns))  # see `changed`

    def commit(self, manifest_fields: dict[str, Any]) -> Manifest:
        """Turn the attempt's draft into the output and write the manifest, in that order.

        Raises:
            StageError: a newer attempt was begun; this process should be gone, and a lost node came back.
        """
        draft = self.draft(manifest_fields["attempt"])
        records = {
            file.relative_to(draft).as_posix(): FileRecord(file.stat().st_size, file_digest(file))
            for file in files_below(draft)
        }
        manifest = Manifest(files=records, **manifest_fields)
        atomic.apply_umask(draft)
        atomic.fsync_tree(draft)
        self._refuse_newer_attempt(manifest)
        if self.output.exists():
            shutil.rmtree(self.output)
        draft.rename(self.output)
        atomic.fsync_dir(self.path)
        self._refuse_newer_attempt(manifest)
        atomic.write_json(self.path / MANIFEST, manifest.to_json())
        return manifest

    def _refuse_newer_attempt(self, manifest: Manifest) -> None:
        newest = max((int(path.name) for path in self.attempts()), default=0)
        if newest > manifest.attempt:
            raise StageError(
                f"attempt {newest} has begun, so attempt {manifest.attempt} commits nothing",
                where=manifest.id,
                fix="end the process that is left of it",
            )


def adopt(source: StageDir, target: StageDir, run_name: str) -> None:
    """Take over a finished stage of another run: files are hard-linked, or copied where that is not possible."""
    manifest = source.manifest()
    assert manifest is not None
    shutil.rmtree(target.path, ignore_errors=True)
    draft = target.draft(0)
    atomic.make_folder(draft)
    for name in manifest.files:
        destination = draft / name
        destination.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source.output / name, destination)
        except OSError:
            shutil.copyfile(source.output / name, destination)
    atomic.fsync_tree(draft)
    draft.rename(target.output)
    atomic.fsync_dir(target.path)
    atomic.write_json(target.path / MANIFEST, replace(manifest, reused_from=run_name).to_json())
