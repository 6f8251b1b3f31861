"""What changed between the plan that a run was started with and the plan of today."""

from contextlib import suppress
from typing import Any

from spa_recipes.errors import RecipeChangedError, RecipeError
from spa_recipes.plan import External, Plan, Stage
from spa_recipes.plan.keys import SCHEME, differences, with_defaults
from spa_recipes.run.rundir import SHORT_KEY, RunDir
from spa_recipes.state.patience import patiently
from spa_recipes.state.reading import read_json
from spa_recipes.state.stagedir import MANIFEST, StageDir

_NEW = " is new"


def refuse_newer(plan: Plan, run: RunDir) -> None:
    """Refuse a run that a newer version of this package worked on: to go on would lose what only that one knows.

    Raises:
        NewerVersionError: a manifest, the plan or the recipe has a field that this version does not know.
        TryAgainError: one of them cannot be read.
    """
    with suppress(RecipeError):
        run.planned()
    if not _has_other_keys(run):
        with suppress(RecipeError):
            run.resolved(type(plan.recipe))
    for manifest in sorted((run.path / "stages").glob(f"*/{MANIFEST}")):
        StageDir(manifest.parent).manifest()


def refuse_changes(plan: Plan, run: RunDir) -> None:
    """Compare the plan with the one that the run was started with; a run without a finished stage may change.

    Raises:
        RecipeChangedError: some stage would have another key.
    """
    if not any((run.path / "stages").glob(f"*/{MANIFEST}")):
        return
    if _has_other_keys(run):
        raise RecipeChangedError(
            "the run was made by a version of spa-recipes that names results by other keys, so none of its stages "
            "can be used again",
            where=str(run.path),
            fix="finish it with that version, do all stages again with --accept, or choose another name or --run-dir",
        )
    try:
        changes = plan_changes(plan, run)
    except ValueError as error:
        raise RecipeChangedError(
            f"the run's plan was damaged ({error}), so nobody can tell whether the recipe is still the same",
            where=str(run.path / "plan.json"),
            fix="write it again from this recipe with --accept, which uses every finished stage that still fits",
        ) from None
    # Stages that come to those of before take nothing away, unless one of those reads them.
    if any(not change.endswith(_NEW) for change in changes) or (changes and _redone(plan, run)):
        raise RecipeChangedError(
            "the recipe, its data or its model changed since the run was started: " + "; ".join(changes[:5]),
            where=str(run.path),
            fix="continue with --accept (redoes only the affected stages), or choose another name or --run-dir",
        )


def plan_changes(plan: Plan, run: RunDir) -> list[str]:
    """`stage: field: old -> new` for each stage whose own settings or data differ from the stored plan of the run.

    Raises:
        ValueError: the stored plan was damaged. TryAgainError: it cannot be read.
    """
    stored = _stored(run)
    if stored is None:
        return []
    if all(stored.get(stage.id, {}).get("key") == stage.key for stage in plan.stages) and len(stored) == len(
        plan.stages
    ):
        return []
    now = {stage.id for stage in plan.stages}
    changes = [f"stage {name} is gone" for name in stored if name not in now]
    for stage in plan.stages:
        if stage.id not in stored:
            changes.append(f"stage {stage.id}{_NEW}")
            continue
        lines = differences(_readable(stored[stage.id]["material"], stage), _readable(stage.material, stage))
        own = [line for line in lines if not _is_upstream(line, stage)]
        changes += [f"{stage.id}: {line}" for line in own]
    return changes


def _redone(plan: Plan, run: RunDir) -> bool:
    """Whether a stage that is done has another key now, if only since what it reads has."""
    stored = _stored(run) or {}
    changed = [stored[stage.id] for stage in plan.stages if stored.get(stage.id, {}).get("key", stage.key) != stage.key]
    done = [manifest.parent.name for manifest in (run.path / "stages").glob(f"*/{MANIFEST}")]
    return any(name.endswith(f"-{one['id']}-{one['key'][:SHORT_KEY]}") for one in changed for name in done)


def _readable(material: dict[str, Any], stage: Stage) -> dict[str, Any]:
    """Key material with the defaults that keys leave out."""
    return {**material, "settings": with_defaults(material["settings"], stage.settings)}


def _has_other_keys(run: RunDir) -> bool:
    """Whether the stored plan was made in another scheme of keys; False where it cannot be read."""
    try:
        return any(entry["material"].get("scheme") != SCHEME for entry in (_stored(run) or {}).values())
    except ValueError:
        return False


def _stored(run: RunDir) -> dict[str, dict[str, Any]] | None:
    """The entries of the stored plan by id, None if there is no plan; the errors of `plan_changes`."""
    try:
        entries = patiently(read_json, run.path / "plan.json")
        stored = {entry["id"]: entry for entry in entries}
        if all(isinstance(entry["material"]["settings"], dict) and entry["key"] for entry in entries):
            return stored
    except OSError:
        return None
    except (KeyError, TypeError, AttributeError):
        pass
    raise ValueError("it is not as it was written")


def _is_upstream(line: str, stage: Stage) -> bool:
    """Whether a difference only repeats that an earlier stage changed."""
    name = line.removeprefix("inputs.").split(":")[0]
    return line.startswith("inputs.") and not isinstance(stage.inputs.get(name), External)
