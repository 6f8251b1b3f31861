"""The folder `final` of a run: the model of its last stage by links, and texts that describe it as files.

The folder is built under another name and comes to its place as a whole; `show` first puts right what an interruption
in between left behind. Links are relative, so a run can be moved.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from spa_recipes.run.rundir import RunDir
from spa_recipes.state import atomic
from spa_recipes.state.digests import file_digest

RECORD = ".shown.json"
"""What the folder shows: the model, and the digests of the texts as they were written."""

EDITED = ".edited"
"""Suffix of a text that a person edited and that does not fit the results any more."""


def show(run: RunDir, model: Path, texts: Mapping[str, str]) -> None:
    """Make `final` show `model` (a folder inside the run) with `texts` beside it, by name.

    A folder that shows the same already stays as it is, with what a person changed in its texts. One that has to be
    renewed hands on what a person put into it; an edited text gets another name, as it may tell of other results. A
    folder without a record of what was written there is a person's with all its files.
    """
    fresh, old = _fresh(run), _old(run)
    if os.path.lexists(old) and not os.path.lexists(run.final):
        old.rename(run.final)
    for path in (fresh, old):
        _remove(path)
    record = {
        "model": model.relative_to(run.path).as_posix(),
        "texts": {name: sha256(text.encode()).hexdigest() for name, text in texts.items()},
    }
    if _record(run.final) == record and _is_whole(run.final, model, texts):
        return
    _link(model, fresh)
    for name, text in texts.items():
        (fresh / name).write_text(text, encoding="utf-8")
    (fresh / RECORD).write_text(json.dumps(record, indent=2) + "\n")
    _keep_what_is_a_persons(run, fresh)
    atomic.fsync_tree(fresh)
    if run.final.is_file() and not run.final.is_symlink():
        atomic.move_aside(run.final, run.path)
    if os.path.lexists(run.final):
        run.final.rename(old)
    fresh.rename(run.final)
    atomic.fsync_dir(run.path)
    _remove(old)


def model_shown(folder: Path) -> Path:
    """The model that a `final` folder shows, which is where its links lead; the folder itself if it has none.

    Links that lead out of the run's stages are a person's.
    """
    stages = folder.resolve().parent / "stages"
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_symlink() and path.resolve().is_relative_to(stages):
            return path.resolve().parent
    return folder.resolve()


def texts_written(run: RunDir) -> dict[str, str]:
    """The digests of the texts beside the final model, by name, as the run wrote them."""
    texts = (_record(run.final) or {"texts": {}})["texts"]
    return {name: digest for name, digest in texts.items() if "/" not in name}


def leftovers(run: RunDir) -> list[Path]:
    """What an interrupted `show` left behind and nothing needs any more."""
    old = [_old(run)] if os.path.lexists(run.final) else []
    return [path for path in (_fresh(run), *old) if os.path.lexists(path)]


def _fresh(run: RunDir) -> Path:
    return run.path / ".final.new"


def _old(run: RunDir) -> Path:
    return run.path / ".final.old"


def _remove(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def _record(folder: Path) -> dict[str, Any] | None:
    try:
        value: dict[str, Any] = json.loads((folder / RECORD).read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) and isinstance(value.get("texts"), dict) else None


def _is_whole(folder: Path, model: Path, texts: Mapping[str, str]) -> bool:
    """Whether every file of the model is shown and no text is missing."""
    shown = all((folder / name).resolve() == (model / name).resolve() for name in _files(model))
    return shown and all((folder / name).is_file() for name in texts)


def _link(model: Path, folder: Path) -> None:
    """A relative link to every file of the model, in folders of the same names.

    `folder` will stand beside the model's run folder under another name, which changes no relative path.
    """
    folder.mkdir()
    for name in _files(model):
        link = folder / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(model / name, link.parent))


def _files(folder: Path) -> Iterator[Path]:
    return (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())


def _keep_what_is_a_persons(run: RunDir, fresh: Path) -> None:
    """Copy what `show` did not write, or what was edited since it did, into the folder that becomes `final`."""
    if run.final.is_symlink():  # as earlier versions made it: what it leads to stays where it is
        return
    texts = (_record(run.final) or {"texts": {}})["texts"]
    stages = (run.path / "stages").resolve()
    for path in sorted(run.final.rglob("*")):
        name = path.relative_to(run.final)
        if path.is_symlink():
            if not path.resolve().is_relative_to(stages):
                _free(fresh / name).symlink_to(path.readlink())
        elif path.is_file() and name.name != RECORD:
            written, digest = texts.get(name.as_posix()), file_digest(path)
            target = fresh / (name.with_name(name.name + EDITED) if written else name)
            if digest != written and not _is_same(target, digest):
                shutil.copyfile(path, _free(target))


def _is_same(path: Path, digest: str) -> bool:
    return path.is_file() and file_digest(path) == digest


def _free(path: Path) -> Path:
    """A name that is free in the new folder, in a folder that is there: `path` itself or one with a suffix."""
    while os.path.lexists(path):
        path = path.with_name(path.name + EDITED)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
