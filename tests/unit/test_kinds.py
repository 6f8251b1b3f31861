"""The table of stage kinds is what the stages do."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from spa_recipes.plan import KINDS, Input, StageOutput
from spa_recipes.plan.stages import Builder
from spa_recipes.state.digests import DigestMemo
from tests.kit.plans import plan_of


def builder() -> Builder:
    build = Builder(DigestMemo(Path("nowhere/.digests.json")))
    build.add("base", "init_model", "weights", settings={"seed": 1}, inputs={})
    return build


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_module(kind: str) -> None:
    assert find_spec(f"spa_recipes.stages.{KINDS[kind].module}") is not None


def test_what_is_delivered_is_written() -> None:
    for kind in KINDS.values():
        assert set(kind.delivers) <= set(kind.writes)


def test_kinds_that_load_no_model_may_compute_with_torch() -> None:
    assert KINDS["sft"].uses_torch
    assert not KINDS["judge"].loads_model
    assert KINDS["judge"].uses_torch
    assert not KINDS["endpoint_verdicts"].loads_model
    assert not KINDS["mt_bench_grades"].uses_torch


def test_importing_a_stage_without_torch_imports_none() -> None:
    names = sorted(
        {kind.module for kind in KINDS.values()} - {kind.module for kind in KINDS.values() if kind.uses_torch}
    )
    imports = "; ".join(f"import spa_recipes.stages.{name}" for name in names)
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {imports}; print('torch' in sys.modules)"], capture_output=True, text=True
    )
    assert done.stdout.strip() == "False", done.stderr


def test_an_input_that_the_kind_does_not_name_is_refused() -> None:
    with pytest.raises(ValueError, match="has no input policy"):
        builder().add("x", "init_model", "", settings={"seed": 1}, inputs={"policy": StageOutput("base", "model")})


def test_a_missing_input_is_refused() -> None:
    with pytest.raises(ValueError, match="needs the input completions"):
        builder().add("x", "score", "", settings={}, inputs={"model": StageOutput("base", "model")})


def test_an_output_that_the_kind_does_not_name_is_refused() -> None:
    inputs: dict[str, Input] = {"model": StageOutput("base", "weights"), "completions": StageOutput("base", "model")}
    with pytest.raises(ValueError, match="cannot read base/weights"):
        builder().add("x", "score", "", settings={}, inputs=inputs)


def test_a_setting_that_the_kind_does_not_name_is_refused() -> None:
    with pytest.raises(ValueError, match="has no setting sead"):
        builder().add("x", "init_model", "", settings={"sead": 1}, inputs={})


def test_an_input_from_outside_knows_the_setting_that_names_it() -> None:
    plan = plan_of(model={"model_name_or_path": "org/model"}, judge={"type": "implicit_reward", "reference": "org/ref"})
    keys = {getattr(value, "key", "") for stage in plan.stages for value in stage.inputs.values()}
    assert {"model.model_name_or_path", "judge.reference", "data.pairs", "sft.data"} <= keys
