"""Runs without having run anything, and what an interruption may leave in them."""

import os
from collections.abc import Callable
from pathlib import Path

from spa_recipes.plan import Plan
from spa_recipes.run import final
from spa_recipes.run.rundir import RunDir
from spa_recipes.state import marker
from spa_recipes.state.stagedir import StageDir
from tests.kit.plans import plan_of
from tests.kit.state import FIELDS

WEIGHTS = 5000
MAKERS = ("init_model", "sft", "dpo", "refine", "control", "member", "peer")


def commit(run: RunDir, plan: Plan, stage_id: str, **metrics: float) -> StageDir:
    """A finished stage without having run it; those that make models leave weights of their own size."""
    stage = plan.stage(stage_id)
    folder = run.stage_dir(stage, plan)
    attempt = int(folder.new_attempt().name)
    model = folder.draft(attempt) / "model"
    model.mkdir(parents=True)
    (model / "log.jsonl").write_text(stage_id)
    if stage.kind in MAKERS:
        (model / "model.safetensors").write_bytes(os.urandom(WEIGHTS))
    identity = {"id": stage.id, "kind": stage.kind, "key": stage.key, "material": stage.material, "metrics": metrics}
    folder.commit({**FIELDS, **identity, "attempt": attempt})
    return folder


def make_run(runs: Path, plan: Plan, *, done: int | None = None) -> RunDir:
    """A run of which the first `done` stages are finished; all of them, with the final link, for None."""
    run = RunDir(runs / plan.recipe.name)
    marker.claim(run.path, run.kind)
    run.write_recipe("text", plan.recipe, plan)
    run.log_event("x")
    for stage in plan.stages[:done]:
        rate = {"win_rate_vs_init": 0.625} if stage.id.startswith("evaluate-") else {}
        commit(run, plan, stage.id, **rate)
    if done is None:
        made = plan.newest_model([stage.id for stage in plan.stages])
        assert made is not None
        final.show(run, run.stage_dir(made, plan).output / "model", {"README.md": "card"})
    return run


def folder_of(run: RunDir, plan: Plan, stage_id: str) -> StageDir:
    return run.stage_dir(plan.stage(stage_id), plan)


def write(path: Path, length: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * length)
    return path


def leave_draft(run: RunDir, plan: Plan) -> Path:
    return write(folder_of(run, plan, "refine-2").draft(1) / "model" / "half", 70).parents[1]


def leave_uncommitted(run: RunDir, plan: Plan) -> Path:
    return write(folder_of(run, plan, "refine-2").output / "model" / "whole", 70).parents[1]


def leave_checkpoint(run: RunDir, plan: Plan) -> Path:
    checkpoints = folder_of(run, plan, "refine-2").work / "checkpoints"
    write(checkpoints / "checkpoint-4" / "spa_checkpoint.json", 5)
    return write(checkpoints / "checkpoint-8" / "optimizer.pt", 70).parent


def leave_checkpoints_of_a_finished_stage(run: RunDir, plan: Plan) -> Path:
    return write(folder_of(run, plan, "seed").work / "checkpoints" / "checkpoint-8" / "optimizer.pt", 70).parents[1]


def leave_shards_of_a_finished_stage(run: RunDir, plan: Plan) -> Path:
    return write(folder_of(run, plan, "generate-1").work / "shards" / "completions" / "0-8.parquet", 70).parents[1]


def leave_damaged(run: RunDir, plan: Plan) -> Path:
    folder = folder_of(run, plan, "judge-1").path
    return write(folder.with_name(folder.name + ".damaged-2") / "output" / "pairs.jsonl", 70).parents[1]


def leave_damaged_shard(run: RunDir, plan: Plan) -> Path:
    return write(folder_of(run, plan, "generate-2").work / "damaged" / "0-8.parquet.damaged-1", 70).parent


def leave_replaced(run: RunDir, plan: Plan) -> Path:
    return write(run.path / "stages" / "07-judge-1-0123abcd" / "output" / "pairs.jsonl", 70).parents[1]


def leave_temporary(run: RunDir, plan: Plan) -> Path:
    return write(folder_of(run, plan, "seed").path / "attempts" / "1" / ".error.json.4711.tmp", 70)


LEFT: list[Callable[[RunDir, Plan], Path]] = [
    leave_draft,
    leave_uncommitted,
    leave_checkpoint,
    leave_checkpoints_of_a_finished_stage,
    leave_shards_of_a_finished_stage,
    leave_damaged,
    leave_damaged_shard,
    leave_replaced,
    leave_temporary,
]


def replaced_stage(tmp_path: Path) -> tuple[RunDir, Plan, StageDir]:
    """A run whose recipe changed after it was finished: judge-1 and what follows are not in its plan any more."""
    old = plan_of(name="first")
    run = make_run(tmp_path, old)
    judge = folder_of(run, old, "judge-1")
    new = plan_of(name="first", judge={"type": "implicit_reward", "beta": 0.2})
    run.write_recipe("text", new.recipe, new)
    return run, old, judge
