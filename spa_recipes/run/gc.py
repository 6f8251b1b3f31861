"""Finds the garbage of a run, says why it is garbage, and deletes it.

A run needs the stages of its stored plan, and the progress of the stages that are not finished. Everything else in its
folder is garbage, unless another run needs it. All of this is read from the disk. An interrupted deletion leaves a
consistent run: the file that makes a stage count as done goes before the other files of the stage.
"""

import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from spa_recipes.errors import DAMAGE, DataError, LockedError, NewerVersionError, RecipeError, TryAgainError
from spa_recipes.plan import KINDS, MODEL
from spa_recipes.recipe.locations import locations
from spa_recipes.run import final
from spa_recipes.run.rundir import Planned, RunDir, all_runs
from spa_recipes.state import atomic
from spa_recipes.state.reading import read_json
from spa_recipes.state.stagedir import MANIFEST, StageDir
from spa_recipes.state.usage import File, files
from spa_recipes.training.env import CHECKPOINT_MARKER

_FOLDER = re.compile(r"\d{2,}-(?P<name>.+-[0-9a-f]{8})(?P<damaged>\.damaged-\d+)?")
_BESIDE = {"control": "the control", "member": "a member", "peer": "the peer's chain"}
"""Kinds of models that a run compares with or judges by, and that nothing delivers."""
_KEEP = {"checkpoints": "keep_checkpoints", "shards": "keep_shards"}


class Item(NamedTuple):
    """Something that can be deleted.

    Attributes:
        path: a file or a folder.
        why: the reason, for people.
        weights: files of the weights, for a model that loses nothing else.
    """

    path: Path
    why: str
    weights: tuple[Path, ...] = ()


class Kept(NamedTuple):
    """Something that the run itself does not need, and why it stays."""

    path: Path
    why: str


class Found(NamedTuple):
    """The garbage of a run, and what looks like garbage but stays."""

    items: list[Item]
    kept: list[Kept]


class Size(NamedTuple):
    """Bytes that become free, and bytes of files that stay on disk because other hard links to them exist."""

    freed: int
    shared: int


class Sweep(NamedTuple):
    """What was found or deleted in a run.

    Attributes:
        skipped: why the run was left alone.
        failed: why it could be cleared in part only, or not at all.
    """

    run: RunDir
    items: list[tuple[Item, Size]]
    kept: list[Kept]
    skipped: str = ""
    failed: DataError | None = None


def look(runs: Sequence[RunDir], *, models: bool) -> list[Sweep]:
    """Return what `sweep` would delete, and delete nothing."""
    results = [_look(run, models) for run in runs]
    found = [result for result in results if isinstance(result, Found)]
    every = iter(sizes([item for each in found for item in each.items]))
    return [
        Sweep(run, [], [], result)
        if isinstance(result, str)
        else Sweep(run, [(item, next(every)) for item in result.items], result.kept)
        for run, result in zip(runs, results, strict=True)
    ]


def sweep(runs: Sequence[RunDir], *, models: bool) -> list[Sweep]:
    """Delete the garbage of every run that no process holds, and return it. One run does not stop the others."""
    return [_sweep(run, models) for run in runs]


def _look(run: RunDir, models: bool) -> Found | str:
    holder = run.holder()
    return f"in use by {holder}" if holder is not None else _look_held(run, models)


def _look_held(run: RunDir, models: bool) -> Found | str:
    """What is garbage in a run that nobody else works on, or why nobody can tell."""
    try:
        run.check()
        return find(run, models=models)
    except (RecipeError, DataError, TryAgainError) as error:
        return str(error)
    except DAMAGE as error:
        return f"it cannot be read ({' '.join(str(error).split())})"


def _sweep(run: RunDir, models: bool) -> Sweep:
    try:
        run.check()
    except DataError as error:
        return Sweep(run, [], [], str(error))
    try:
        with run.locked():
            found = _look_held(run, models)
            return Sweep(run, [], [], found) if isinstance(found, str) else _free_all(run, found)
    except LockedError as error:
        return Sweep(run, [], [], error.what)
    except (RecipeError, TryAgainError) as error:
        return Sweep(run, [], [], str(error))
    except DataError as error:
        return Sweep(run, [], [], str(error), error)


def _free_all(run: RunDir, found: Found) -> Sweep:
    freed: list[tuple[Item, Size]] = []
    try:
        for item in found.items:
            freed.append((item, free(item)))
    except DataError as error:
        return Sweep(run, freed, found.kept, failed=error)
    return Sweep(run, freed, found.kept)


def find(run: RunDir, *, models: bool) -> Found:
    """Return the garbage of a run that no process works on.

    With `models`, this includes the weights of the policies before the final one, of the control and of members, if
    the run was finished and every stage that reads them is done.

    Raises:
        RecipeError: the run's plan or settings are damaged, so nobody knows what is garbage.
        NewerVersionError: a newer version wrote them. TryAgainError: they cannot be read.
    """
    planned = run.planned()
    with suppress(RecipeError):  # of an older version; a newer one may name places that this one does not know
        run.recipe()
    needed = {stage.name: stage for stage in planned}
    keep = _progress_to_keep(run)
    found = Found([], [])
    optional: list[tuple[StageDir, Item]] = []
    for folder, match in _stage_folders(run):
        if match["damaged"]:
            found.items.append(Item(folder, "it was damaged and was set aside"))
        elif match["name"] in needed:
            found.items.extend(_leftovers(StageDir(folder), needed[match["name"]], keep))
        else:
            optional.append((StageDir(folder), Item(folder, "not in the run's plan any more")))
    if models and (weights := list(_earlier_models(run, planned))):
        damage = _damage(run, planned, weights)
        if damage:
            why = f"{damage}, which may have to be made from it: `{run.resume_command}` first"
            found.kept.extend(Kept(item.path, why) for _, item in weights)
        else:
            optional += weights
    uses = _uses(run)
    for stage_dir, item in optional:
        why = uses.of(stage_dir, item.path)
        if why:
            found.kept.append(Kept(item.path, why))
        else:
            found.items.append(item)
    found.items.extend(Item(path, "a folder of the final model that was not finished") for path in final.leftovers(run))
    found.items.extend(_temporary_files(run, found.items))
    return found


def sizes(items: Sequence[Item]) -> list[Size]:
    """Return what deleting all the items frees; a file that several items name counts for the first one only."""
    contents = [list(_files(item)) for item in items]
    going = Counter(file.inode for content in contents for file in content)
    counted = set[tuple[int, int]]()
    result = []
    for content in contents:
        new = {file.inode: file for file in content if file.inode not in counted}
        counted |= new.keys()
        freed = sum(file.size for file in new.values() if going[file.inode] == file.names)
        result.append(Size(freed, sum(file.size for file in new.values()) - freed))
    return result


def free(item: Item) -> Size:
    """Delete an item and return what that freed.

    Raises:
        DataError: it cannot be deleted.
    """
    freed = shared = 0
    try:
        if item.weights:
            StageDir(item.path.parents[1]).mark_pruned(f"{MODEL}/{path.name}" for path in item.weights)
        manifest = item.path / MANIFEST
        for file in sorted(_files(item), key=lambda file: file.path != manifest):
            if file.path.lstat().st_nlink == 1:
                freed += file.size
            else:
                shared += file.size
            file.path.unlink()
        if item.path.is_dir() and not item.weights:
            shutil.rmtree(item.path)  # only folders are left in it
            with suppress(OSError):
                item.path.parent.rmdir()  # works only if it is empty now
    except OSError as error:
        raise DataError(
            f"cannot be deleted ({error.strerror})",
            where=str(error.filename or item.path),
            fix="change its permissions, then run `spa gc` again",
        ) from None
    return Size(freed, shared)


def _files(item: Item) -> Iterator[File]:
    for path in item.weights or (item.path,):
        yield from files(path)


def _stage_folders(run: RunDir) -> Iterator[tuple[Path, re.Match[str]]]:
    """Yield the folders below `stages/` that this package made; it deletes no others."""
    stages = run.path / "stages"
    for folder in sorted(stages.iterdir()) if stages.is_dir() else ():
        match = _FOLDER.fullmatch(folder.name)
        if match and folder.is_dir() and not folder.is_symlink():
            yield folder, match


def _leftovers(folder: StageDir, stage: Planned, keep: set[str]) -> Iterator[Item]:
    """Yield what a stage of the plan left behind and no attempt will use."""
    for draft in folder.drafts():
        yield Item(draft, "output of an attempt that did not finish")
    if folder.output.is_dir() and not (folder.path / MANIFEST).exists():
        yield Item(folder.output, "output that was not committed")
    if not folder.is_done(stage.key):
        for checkpoint in sorted(folder.work.glob("checkpoints/checkpoint-*")):
            if not (checkpoint / CHECKPOINT_MARKER).is_file():
                yield Item(checkpoint, "a checkpoint that was not finished")
        if (folder.work / "damaged").is_dir():
            yield Item(folder.work / "damaged", "it was damaged and was set aside")
        return
    for path in sorted(folder.work.iterdir()) if folder.work.is_dir() else ():
        if path.name not in keep:
            yield Item(path, "progress of a stage that is finished")
    manifest = folder.manifest()
    left = tuple(path for name in (manifest.pruned if manifest else ()) if (path := folder.output / name).is_file())
    if left:
        yield Item(folder.output / MODEL, "weights that were given up before", left)


def _earlier_models(run: RunDir, planned: Sequence[Planned]) -> Iterator[tuple[StageDir, Item]]:
    """Yield the weights of earlier policies, and of models beside them, that no unfinished stage reads."""
    done = run.done(planned)
    made = [stage for stage in planned if KINDS[stage.kind].policy and stage.id in done]
    folders = {stage.id: folder for stage in made if (folder := run.existing(stage)) is not None}
    if final.model_shown(run.final) not in [(folder.output / MODEL).resolve() for folder in folders.values()]:
        return  # the run was not finished since its recipe changed
    for stage in planned:
        what = "a policy before the final one" if stage in made[:-1] else _BESIDE.get(stage.kind)
        folder = run.existing(stage) if what and stage.id in done and stage.kind != "sft" else None
        if folder is None:
            continue
        model = folder.output / MODEL
        weights = tuple(sorted(model.glob("*.safetensors")))
        if weights and all(other.id in done for other in planned if stage.id in other.reads):
            yield folder, Item(model, f"weights of {what}", weights)


def _damage(run: RunDir, planned: Sequence[Planned], weights: Sequence[tuple[StageDir, Item]]) -> str:
    """Return what is damaged among the results that stay when these weights go; empty if nothing is."""
    going = {folder.path: {f"{MODEL}/{path.name}" for path in item.weights} for folder, item in weights}
    for stage in planned:
        folder = run.existing(stage)
        if folder is not None and (problems := folder.problems(deep=True, besides=going.get(folder.path, ()))):
            return f"{stage.id} is damaged ({problems[0]})"
    return ""


def _temporary_files(run: RunDir, items: Sequence[Item]) -> list[Item]:
    """Return the files that killed writers left behind, except those inside the items."""
    return [
        Item(file.path, "temporary file of a process that was killed")
        for file in files(run.path)
        if atomic.TEMPORARY.fullmatch(file.path.name) and not any(file.path.is_relative_to(item.path) for item in items)
    ]


class _Uses(NamedTuple):
    """What a run's `final`, the plans of other runs, and the recipes of all runs point to.

    Attributes:
        final: the model that `final` shows.
        wanted: for the name of a stage's folder, the run that still has to do this stage.
        named: places that recipes name, each with the run of the recipe.
    """

    final: Path
    wanted: dict[str, str]
    named: list[tuple[Path, str]]

    def of(self, folder: StageDir, path: Path) -> str:
        """Return why `path`, a stage's folder or something in it, has to stay; empty if it need not."""
        path = path.resolve()
        if self.final.is_relative_to(path):
            return "`final` shows it until the run is finished again"
        manifest, name = folder.manifest(), folder.path.name.partition("-")[2]
        if name in self.wanted and manifest is not None and folder.has_all(manifest.key):
            return f"run {self.wanted[name]} has this stage in its plan and can take it over"
        readers = [run for named, run in self.named if named.is_relative_to(path) or path.is_relative_to(named)]
        return f"the recipe of run {readers[0]} reads it" if readers else ""


def _uses(run: RunDir) -> _Uses:
    wanted: dict[str, str] = {}
    named: list[tuple[Path, str]] = []
    for other in all_runs(run.path.parent):
        with suppress(RecipeError, NewerVersionError, *DAMAGE):  # a run without a plan cannot take anything over
            named += [(path, other.name) for path in _named_paths(_resolved(other), other)]
            if not other.path.samefile(run.path):
                planned = other.planned()
                done = other.done(planned)
                wanted |= {stage.name: other.name for stage in planned if stage.id not in done}
    return _Uses(final.model_shown(run.final), wanted, named)


def _named_paths(settings: dict[str, Any], run: RunDir) -> Iterator[Path]:
    """Yield the places inside of stages that a run's recipe names.

    A relative path is looked up in the current folder and in the one that holds the runs_dir.
    """
    for location in locations(settings):
        for base in {Path.cwd(), run.path.absolute().parent.parent}:
            with suppress(OSError, ValueError, RuntimeError):  # a Hub id, or a file that is gone
                path = (base / Path(location).expanduser()).resolve(strict=True)
                yield from (place for place in {path, final.model_shown(path)} if "stages" in place.parts)


def _progress_to_keep(run: RunDir) -> set[str]:
    """Return the names of the folders below `work/` that the recipe keeps after a stage is finished."""
    storage = _resolved(run).get("storage", {})
    return {name for name, setting in _KEEP.items() if storage.get(setting)}


def _resolved(run: RunDir) -> dict[str, Any]:
    path = run.path / "resolved.json"
    try:
        value = read_json(path)
    except (OSError, ValueError):
        value = None
    if not isinstance(value, dict):
        raise RecipeError(
            "the run's settings cannot be read", where=str(path), fix="write them again from the recipe with `spa run`"
        )
    return value
