"""What changed between the plan that a run was started with and the plan of today."""

from typing import Any

from spa_recipes.errors import RecipeChangedError
from spa_recipes.plan import External, Plan, Stage
from spa_recipes.plan.keys import SCHEME, differences, with_defaults
from spa_recipes.run.rundir import RunDir
from spa_recipes.state.reading import read_json


def refuse_changes(plan: Plan, run: RunDir) -> None:
    """Compare the plan with the one that the run was started with.

    Raises:
        RecipeChangedError: some stage would have another key.
    """
    if _has_other_keys(run):
        raise RecipeChangedError(
            "the run was made by a version of spa-recipes that names results by other keys, so none of its stages "
            "can be used again",
            where=str(run.path),
            fix="finish it with that version, do all stages again with --accept, or choose another name or --run-dir",
        )
    changes = plan_changes(plan, run)
    if changes:
        raise RecipeChangedError(
            "the recipe, its data or its model changed since the run was started: " + "; ".join(changes[:5]),
            where=str(run.path),
            fix="continue with --accept (redoes only the affected stages), or choose another name or --run-dir",
        )


def plan_changes(plan: Plan, run: RunDir) -> list[str]:
    """`stage: field: old -> new` for each stage whose own settings or data differ from the stored plan of the run."""
    try:
        stored = {entry["id"]: entry for entry in read_json(run.path / "plan.json")}
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"plan.json, to compare with, cannot be read ({error})"]
    if all(stored.get(stage.id, {}).get("key") == stage.key for stage in plan.stages) and len(stored) == len(
        plan.stages
    ):
        return []
    now = {stage.id for stage in plan.stages}
    changes = [f"stage {name} is gone" for name in stored if name not in now]
    for stage in plan.stages:
        if stage.id not in stored:
            changes.append(f"stage {stage.id} is new")
            continue
        lines = differences(_readable(stored[stage.id]["material"], stage), _readable(stage.material, stage))
        own = [line for line in lines if not _is_upstream(line, stage)]
        changes += [f"{stage.id}: {line}" for line in own]
    return changes


def _readable(material: dict[str, Any], stage: Stage) -> dict[str, Any]:
    """Key material with the defaults that keys leave out."""
    return {**material, "settings": with_defaults(material["settings"], stage.settings)}


def _has_other_keys(run: RunDir) -> bool:
    """Whether the stored plan was made in another scheme of keys; False where it cannot be read."""
    try:
        stored = read_json(run.path / "plan.json")
        return any(entry["material"].get("scheme") != SCHEME for entry in stored)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _is_upstream(line: str, stage: Stage) -> bool:
    """Whether a difference only repeats that an earlier stage changed."""
    name = line.removeprefix("inputs.").split(":")[0]
    return line.startswith("inputs.") and not isinstance(stage.inputs.get(name), External)
