"""Errors of stages name what to change in the recipe."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from spa_recipes.errors import StageError, TryAgainError
from spa_recipes.plan import KINDS
from spa_recipes.recipe.schema import Recipe
from spa_recipes.run import disk, failure, worker
from spa_recipes.run.failure import stage_failure
from spa_recipes.run.memory import smaller
from spa_recipes.stages.context import StageSpec
from spa_recipes.state.stagedir import StageDir
from tests.kit.plans import plan_of
from tests.kit.recipes import mini
from tests.kit.stages import spec_of

# --- a full disk ---


def test_what_is_there_already_need_not_be_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(sft={"save_steps": 4})
    folder = StageDir(tmp_path / "sft")
    needed = disk.room_needed(plan.stage("sft"), plan, folder)
    assert needed is not None
    (folder.work / "checkpoints").mkdir(parents=True)
    (folder.work / "checkpoints" / "file").write_bytes(b"x" * 1000)
    assert disk.room_needed(plan.stage("sft"), plan, folder) == needed - 1000
    monkeypatch.setattr(disk, "free_bytes", lambda path: needed - 1001)
    with pytest.raises(TryAgainError, match="on the disk"):
        disk.room_needed(plan.stage("sft"), plan, folder)


# --- a stage that ends badly ---


@pytest.mark.parametrize("kind", ["sft", "dpo", "refine", "generate", "score", "reward", "evaluate"])
def test_out_of_memory_names_keys_of_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """In every kind of stage that loads a model, wherever in it the memory runs out."""

    def run(context: Any) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setitem(sys.modules, "spa_recipes.stages.bad", type("bad", (), {"run": staticmethod(run)}))
    monkeypatch.setitem(KINDS, kind, KINDS[kind]._replace(module="bad"))
    spec = spec_of(tmp_path / "stages" / "stage", kind, {"sampling": mini()["sampling"]}, {})
    assert worker.run_stage(spec) == 75
    record = json.loads((tmp_path / "stages" / "stage" / "attempts" / "1" / "error.json").read_text())
    assert record["exit_code"] == 75
    recipe = Recipe.model_validate(mini()).model_dump()
    keys = re.findall(r"[a-z_]+(?:\.[a-z_]+)+", record["fix"])
    assert keys
    for key in keys:
        value: Any = recipe
        for name in key.split("."):
            assert name in value, key
            value = value[name]


def test_vllm_has_keys_of_its_own() -> None:
    fix = smaller("generate", {"sampling": {"backend": {"type": "vllm"}}})
    assert "sampling.backend.gpu_memory_utilization" in fix


def test_a_disk_too_full_for_an_error_is_told_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of()
    (tmp_path / "worker.log").write_text("Traceback")
    assert isinstance(stage_failure(plan.stage("sft"), 1, tmp_path), StageError)
    monkeypatch.setattr(failure, "free_bytes", lambda path: 100)
    error = stage_failure(plan.stage("sft"), 1, tmp_path)
    assert isinstance(error, TryAgainError)
    assert "the disk is full" in str(error)


def test_a_spec_names_the_run_by_relative_paths(tmp_path: Path) -> None:
    stage, other = tmp_path / "run" / "stages" / "03-sft", tmp_path / "run" / "stages" / "02-base"
    inputs = {"policy": other / "output" / "model", "pairs": Path("/data/pairs.jsonl"), "reference": Path("org/name")}
    spec = spec_of(stage, "sft", {}, inputs)
    file = stage / "attempts" / "1" / "spec.json"
    spec.write(file)
    assert str(tmp_path) not in file.read_text()
    assert StageSpec.read(file) == spec
    (tmp_path / "run").rename(tmp_path / "moved")
    moved = StageSpec.read(tmp_path / "moved" / "stages" / "03-sft" / "attempts" / "1" / "spec.json")
    assert moved.inputs["policy"] == str(tmp_path / "moved" / "stages" / "02-base" / "output" / "model")
    assert moved.inputs["reference"] == "org/name"
    assert moved.stage_dir == str(tmp_path / "moved" / "stages" / "03-sft")
