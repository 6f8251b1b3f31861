"""What the process of a stage is told."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from spa_recipes.estimates import Sharding, checkpoints_of, processes_of, sharding_of
from spa_recipes.plan import KINDS, External, Plan, Stage
from spa_recipes.run.fit import hardware_of_work
from spa_recipes.run.rundir import RunDir
from spa_recipes.stages.context import StageSpec


def stage_spec(plan: Plan, run: RunDir, stage: Stage, attempt: int, disk_needed: int | None) -> StageSpec:
    """The spec of an attempt; `disk_needed` in bytes, None where it is not known."""
    settings, storage = json_settings(stage), plan.recipe.storage.model_dump(mode="json")
    sharding: Sharding | None = "none"
    if "train" in KINDS[stage.kind].work:
        sharding = sharding_of(stage, plan.recipe, hardware_of_work(plan.recipe))
        chosen = checkpoints_of(stage, plan.recipe, sharding)
        settings["training"]["save_steps"], storage["checkpoints_while_training"] = chosen.every, chosen.kept
    return StageSpec(
        id=stage.id,
        kind=stage.kind,
        key=stage.key,
        material=stage.material,
        stage_dir=str(run.stage_dir(stage, plan).path.absolute()),
        attempt=attempt,
        settings=settings,
        inputs={name: _location(run.input_path(value, plan)) for name, value in stage.inputs.items()},
        revisions={name: value.revision for name, value in stage.inputs.items() if isinstance(value, External)},
        keys={name: value.key for name, value in stage.inputs.items() if isinstance(value, External)},
        runtime={
            "run": run.name,
            "disk_needed": disk_needed,
            "training_processes": processes_of(plan.recipe),
            "sharding": sharding or "none",  # accelerate's own configuration says it
            "compute": plan.recipe.compute.model_dump(mode="json"),
            "storage": storage,
            "tracking": plan.recipe.tracking.model_dump(mode="json"),
        },
    )


def json_settings(stage: Stage) -> dict[str, Any]:
    """The settings of a stage in JSON form, with their runtime fields."""
    return {
        name: value.model_dump(mode="json") if isinstance(value, BaseModel) else value
        for name, value in stage.settings.items()
    }


def _location(location: str) -> str:
    """An absolute path where there is such a path; a Hub id as it is."""
    return str(Path(location).absolute()) if Path(location).exists() else location
