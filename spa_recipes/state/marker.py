"""Which folders are this tool's own: it writes into, replaces and deletes no others.

A folder gets a marker when it is made. One from before there were markers is known by what it holds.
"""

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Literal

from spa_recipes.errors import RecipeError
from spa_recipes.state import atomic
from spa_recipes.state.reading import read_json

MARKER = ".spa-folder"
"""A file with the kind of the folder that it is in."""

Kind = Literal["run", "job", "results"]
"""The folder of a run; the work in progress `OUT.spa` of a job (`spa judge`, `spa sample`, `spa evaluate`); results of
`spa evaluate`."""

_WORDS: dict[Kind, str] = {
    "run": "a run",
    "job": "work in progress of spa judge, spa sample or spa evaluate",
    "results": "results of spa evaluate",
}
_REMEDY: dict[Kind, str] = {
    "run": "choose a new or an empty folder: another --run-dir, or another name or storage.runs_dir in the recipe",
    "job": "move it away, or choose another output",
    "results": "move it away, or choose another output",
}
_FILES_OF_A_RUN = ("recipe.yaml", "plan.json", "resolved.json", "events.jsonl")
_LEFT_BY_A_START = frozenset({MARKER, ".lock", ".lease", ".holder", ".digests.json"})
"""What may be in a folder without a valid marker when a process was killed right after it made the folder."""


def kind_of(folder: Path) -> Kind | None:
    """What a folder is, None for one that is not this tool's."""
    try:
        descriptor = os.open(folder / MARKER, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as handle:
            content = handle.read(64).decode(errors="replace").strip()
    except OSError:
        content = ""
    for kind in _WORDS:
        if content == kind:
            return kind
    return _kind_without_marker(folder)


def _kind_without_marker(folder: Path) -> Kind | None:
    """Of a run or job that an earlier version made: it has stages, and of its files at most one is missing."""
    there = sum((folder / name).is_file() for name in _FILES_OF_A_RUN)
    if not (folder / "stages").is_dir() or there < len(_FILES_OF_A_RUN) - 1:
        return None
    try:
        asked = read_json(folder / "resolved.json")
    except (OSError, ValueError):
        return "run"
    return "run" if isinstance(asked, dict) and "data" in asked else "job"


def refuse_foreign(folder: Path, kind: Kind) -> None:
    """Refuse a folder that has something else in it than what is to be made there, or whose name no file can note.

    Raises:
        RecipeError: it is not empty and not of this kind, not a folder, or its path is not UTF-8.
    """
    _refuse_other_encodings(folder)
    if not os.path.lexists(folder):
        return
    if not folder.is_dir() or (kind != "run" and folder.is_symlink()):  # what is deleted later has to be the folder
        raise RecipeError("not a folder", where=str(folder), fix=_REMEDY[kind])
    names = sorted(path.name for path in folder.iterdir() if not _is_left_by_a_start(path.name))
    found = kind_of(folder)  # after the names: a process that starts there now makes the marker before all else
    if found == kind:
        return
    if found is None and not names:
        return
    holds = _WORDS[found] if found else ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    raise RecipeError(
        f"the folder holds {holds}, and not {_WORDS[kind]}; nothing in it was changed",
        where=str(folder),
        fix=_REMEDY[kind],
    )


def _refuse_other_encodings(folder: Path) -> None:
    path = os.fsencode(folder.absolute())
    try:
        path.decode("utf-8")
    except UnicodeDecodeError:
        raise RecipeError(
            "the path is not UTF-8, as names from old disks and archives may be, and a run notes it in files that are",
            where=path.decode("utf-8", "backslashreplace"),
            fix="rename the folder with the \\x in its name (`mv`, or `convmv` for many), or choose another place",
        ) from None


def _is_left_by_a_start(name: str) -> bool:
    return name in _LEFT_BY_A_START or name.startswith(f".{MARKER}.")


def claim(folder: Path, kind: Kind) -> None:
    """Make a folder, or take one that is empty or of this kind, and mark it.

    Raises:
        RecipeError: it is not empty and not of this kind.
        OSError: it cannot be made or marked.
    """
    refuse_foreign(folder, kind)
    atomic.make_folder(folder)
    if kind_of(folder) != kind:
        mark(folder, kind)
    elif not (folder / MARKER).is_file():
        with suppress(OSError):  # `spa gc` has to work where the disk is full, and what the folder holds tells as well
            mark(folder, kind)


def mark(folder: Path, kind: Kind) -> None:
    """Say of a folder that this process made what it is."""
    atomic.write_text(folder / MARKER, kind + "\n")


def remove(folder: Path, kind: Kind) -> None:
    """Delete a folder of this tool with all that is in it; the marker goes last, so a killed deletion can go on.

    Raises:
        RecipeError: it is not of this kind.
        OSError: it cannot be deleted.
    """
    refuse_foreign(folder, kind)
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != MARKER:
            path.unlink()
    (folder / MARKER).unlink(missing_ok=True)
    folder.rmdir()
