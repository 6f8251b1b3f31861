"""The folder `final` of a run: the model of its last stage by links, and texts that describe it as files.

The folder is built under another name and comes to its place as a whole; `show` first puts right what an interruption
in between left behind. Links are relative, so a run can be moved. Where the file system has no symbolic links, the
folder holds copies of the model's files, and a record of them.
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
from spa_recipes.state.offers import NOT_OFFERED
from spa_recipes.state.reading import read_json

RECORD = ".shown.json"
"""What the folder shows: the model, the digests of the texts as they were written, and where files of the model had to
be copied, the digest of each and the time of its original."""

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
    shown = _record(run.final) or {}
    copies = shown.pop("copies", {})
    if shown == record and _is_whole(run.final, model, texts, copies):
        return
    if copies := _link(model, fresh):
        record["copies"] = copies
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
    """The model that a `final` folder shows: where its links lead, or what it holds a copy of; else the folder itself.

    A person may have put links of their own beside them: those that lead out of the run's stages, and those that do not
    lead into the model of the record.
    """
    run = folder.resolve().parent
    links = [path for path in sorted(folder.iterdir()) if path.is_symlink()] if folder.is_dir() else []
    led_to = [Path(os.path.realpath(path)) for path in links]  # `resolve` would refuse a link to itself
    models = [file.parent for file in led_to if file.is_relative_to(run / "stages")]
    record = _record(folder) or {}
    recorded = Path(os.path.realpath(run / record.get("model", "")))
    if record.get("copies") and recorded.is_relative_to(run / "stages") and recorded.is_dir():
        return recorded
    if recorded in models:
        return recorded
    return models[0] if models else folder.resolve()


def texts_written(run: RunDir) -> dict[Path, str]:
    """The digests of the texts beside the final model as the run wrote them, by the path of the text."""
    texts = (_record(run.final) or {"texts": {}})["texts"]
    return {run.final / name: digest for name, digest in texts.items() if "/" not in name}


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
        value: dict[str, Any] = read_json(folder / RECORD)
    except (OSError, ValueError):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("texts"), dict):
        return None
    if not isinstance(value.get("model"), str) or "\0" in value["model"]:
        return None
    copies = value.get("copies", {})
    return value if isinstance(copies, dict) and all(isinstance(copy, dict) for copy in copies.values()) else None


def _is_whole(folder: Path, model: Path, texts: Mapping[str, str], copies: Mapping[str, Any]) -> bool:
    """Whether every file of the model is shown and no text is missing."""
    shown = all(
        (folder / name).resolve() == (model / name).resolve()
        or _is_copy(folder / name, model / name, copies.get(name.as_posix()))
        for name in _files(model)
    )
    return shown and all((folder / name).is_file() for name in texts)


def _is_copy(path: Path, original: Path, recorded: Mapping[str, Any] | None) -> bool:
    """Whether a file is the copy that was recorded, and the original has not been made again since."""
    if recorded is None or not path.is_file():
        return False
    facts = original.stat()
    return facts.st_mtime_ns == recorded.get("mtime_ns") and facts.st_size == path.stat().st_size


def _link(model: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """A relative link to every file of the model, in folders of the same names; a copy where links are refused.

    `folder` will stand beside the model's run folder under another name, which changes no relative path.

    Returns the record of the copies, by name.
    """
    folder.mkdir()
    copies: dict[str, dict[str, Any]] = {}
    for name in _files(model):
        link, original = folder / name, model / name
        link.parent.mkdir(parents=True, exist_ok=True)
        try:
            link.symlink_to(os.path.relpath(original, link.parent))
        except OSError as error:
            if error.errno not in NOT_OFFERED:
                raise
            shutil.copyfile(original, link)
            copies[name.as_posix()] = {"sha256": file_digest(link), "mtime_ns": original.stat().st_mtime_ns}
    return copies


def _files(folder: Path) -> Iterator[Path]:
    return (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())


def _keep_what_is_a_persons(run: RunDir, fresh: Path) -> None:
    """Copy what `show` did not write, or what was edited since it did, into the folder that becomes `final`."""
    if run.final.is_symlink():  # as earlier versions made it: what it leads to stays where it is
        return
    record = _record(run.final) or {"texts": {}}
    ours = {name: copy.get("sha256") for name, copy in record.get("copies", {}).items()} | record["texts"]
    stages = (run.path / "stages").resolve()
    for path in sorted(run.final.rglob("*")):
        name = path.relative_to(run.final)
        if path.is_symlink():
            if not path.resolve().is_relative_to(stages):
                _free(fresh / name).symlink_to(path.readlink())
        elif path.is_file() and name.name != RECORD:
            written, digest = ours.get(name.as_posix()), file_digest(path)
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
