"""What must be true of a run after it was stopped, and of its folder when it has ended after all."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from spa_recipes.run.rundir import RunDir
from spa_recipes.state.digests import file_digest
from tests.injection.faults import Note

MARKER = "spa_checkpoint.json"
OWN_TO_AN_ATTEMPT = ("seconds", "finished_at", "attempt", "reused_from", "sha256")
"""What may differ between the manifests of two runs of the same recipe."""


class Snapshot(NamedTuple):
    """What a stopped run has to show, by path below the folder: nothing of it may be made again or be lost.

    Attributes:
        manifests: text of the manifests of finished stages.
        shards: whole shards of unfinished stages.
        checkpoints: step of the newest whole checkpoint of unfinished trainings, by stage folder.
    """

    manifests: dict[str, str]
    shards: frozenset[str]
    checkpoints: dict[str, int]


def snapshot(folder: Path) -> Snapshot:
    """Look at what is on disk."""
    manifests, shards, checkpoints = {}, set(), {}
    for stage in stage_folders(folder):
        below = stage.relative_to(folder).as_posix()
        if (stage / "manifest.json").exists():
            manifests[below] = (stage / "manifest.json").read_text()
            continue
        shards |= {path.relative_to(folder).as_posix() for path in stage.glob("work/shards/*/[0-9]*.parquet")}
        whole = [step for step in map(_whole_step, stage.glob("work/checkpoints/checkpoint-*")) if step]
        checkpoints[below] = max(whole, default=0)
    return Snapshot(manifests, frozenset(shards), checkpoints)


def stage_folders(folder: Path) -> list[Path]:
    """All stage folders of all runs below a folder."""
    return sorted(path.parent for path in folder.rglob("attempts") if path.is_dir()) or sorted(
        path.parent for path in folder.rglob("manifest.json")
    )


def _whole_step(checkpoint: Path) -> int:
    """Step of a checkpoint whose files are those of its marker, else 0."""
    try:
        files = json.loads((checkpoint / MARKER).read_text())["files"]
        whole = all(file_digest(checkpoint / name) == facts["sha256"] for name, facts in files.items())
    except (OSError, ValueError):
        return 0
    return int(checkpoint.name.rpartition("-")[2]) if whole else 0


def lost_work(folder: Path, before: Snapshot, now: Snapshot, notes: list[Note], save_steps: int) -> list[str]:
    """What a command did again although it was there when it started, or lost although it had been kept."""
    problems = [
        f"{name}: the finished stage was done again"
        for name, text in before.manifests.items()
        if now.manifests.get(name) != text
    ]
    problems += [
        f"{note.renamed_to}: the shard was made again"
        for note in notes
        if note.point.kind == "rename" and note.renamed_to in before.shards
    ]
    for stage, kept in now.checkpoints.items():
        steps = _steps(_newest_attempt(folder / stage))
        first = before.checkpoints.get(stage, 0)
        if steps and steps[0] != first + 1:
            problems.append(f"{stage}: training went on with step {steps[0]}, its checkpoint was of step {first}")
        if steps and steps[-1] - kept > save_steps:
            problems.append(f"{stage}: step {steps[-1]} was done, the newest checkpoint is of step {kept}")
    return problems


def _newest_attempt(stage: Path) -> Path:
    """The folder of the newest attempt, which need not be there."""
    number = max((int(path.name) for path in (stage / "attempts").iterdir()), default=1)
    return stage / "attempts" / str(number)


def _steps(attempt: Path) -> list[int]:
    """Steps of a training that its progress names."""
    return [line["done"] for line in whole_lines(attempt / "progress.jsonl") if line.get("unit") == "steps"]


def whole_lines(file: Path) -> Iterator[dict[str, Any]]:
    """Lines that were written to their end."""
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            yield json.loads(line)
        except ValueError:
            continue


def swallowed_events(file: Path) -> list[str]:
    """Events that stand on the line of another one, which a power loss cut off."""
    lines = file.read_text().splitlines()
    return [
        f"{file.name}: an event stands in the middle of line {i}"
        for i, line in enumerate(lines, 1)
        if '{"time": ' in line[1:]
    ]


def leftovers(folder: Path, within: str = "") -> list[str]:
    """Temporary files below a folder, only those in a folder named `within` if that is given."""
    found = [path.relative_to(folder) for path in folder.rglob(".*") if path.name.endswith(".tmp")]
    return sorted(path.as_posix() for path in found if not within or within in path.parts)


def is_free(run: Path) -> bool:
    """Whether nobody holds the run."""
    return RunDir(run).holder() is None


def differences(wanted: Path, found: Path) -> list[str]:
    """How a finished run differs from another one of the same recipe: files, bytes and manifests of every stage."""
    names = [{path.name for path in (run / "stages").iterdir()} for run in (wanted, found)]
    problems = [f"stages/{name}: only in one of the runs" for name in sorted(names[0] ^ names[1])]
    for name in sorted(names[0] & names[1]):
        one, other = wanted / "stages" / name, found / "stages" / name
        # An empty folder is nothing lost: a kill between commit and clean-up leaves `work`.
        files = [{p.relative_to(s).as_posix() for p in s.rglob("*") if not p.is_dir()} for s in (one, other)]
        odd = sorted(path for path in files[0] ^ files[1] if not path.startswith("attempts"))
        problems += [f"stages/{name}/{path}: only in one of the runs" for path in odd]
        shared = sorted(path for path in files[0] & files[1] if path.startswith("output/") and (one / path).is_file())
        problems += [
            f"stages/{name}/{path}: other bytes" for path in shared if not _same_bytes(one / path, other / path)
        ]
        if _result(one) != _result(other):
            problems.append(f"stages/{name}/manifest.json: other content")
    ours, theirs = (_shown(run / "final") for run in (wanted, found))
    shown = sorted(ours.keys() | theirs.keys())
    return problems + [f"final/{name}: differs" for name in shown if ours.get(name) != theirs.get(name)]


def _shown(final: Path) -> dict[str, str | bytes]:
    """Where the links of a final folder point to, and the content of its files."""
    return {
        path.relative_to(final).as_posix(): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in final.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def _same_bytes(one: Path, other: Path) -> bool:
    return one.read_bytes() == other.read_bytes()


def _result(stage: Path) -> dict[str, Any]:
    """The manifest without what belongs to the attempt."""
    manifest: dict[str, Any] = json.loads((stage / "manifest.json").read_text())
    manifest["metrics"].pop("resumed_from_step", None)
    return {name: value for name, value in manifest.items() if name not in OWN_TO_AN_ATTEMPT}
