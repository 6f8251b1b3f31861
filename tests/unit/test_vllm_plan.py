"""Sampling with vLLM: which stages do it, what their keys hold, and what vLLM's errors say in one line."""

import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from spa_recipes.generation.vllm import _engine_error, _first_sentence, _start_error
from spa_recipes.plan import StageOutput
from spa_recipes.recipe.schema import Compute, Model, Recipe
from spa_recipes.run.executors import VllmProcesses, vllm_processes_of
from tests.kit.plans import vllm_plan
from tests.kit.recipes import mini

# --- the recipe and the plan


def test_a_whole_answer_must_fit_the_engine() -> None:
    recipe = mini()
    recipe["sampling"]["backend"] = {"type": "vllm", "max_model_len": 79}
    with pytest.raises(ValidationError, match=r"max_model_len \(79\) must not be less than .* \(80\)"):
        Recipe.model_validate(recipe)


def test_an_adapter_needs_lora() -> None:
    recipe = mini()
    recipe["sampling"]["backend"] = {"type": "vllm", "lora": "adapter"}
    with pytest.raises(ValidationError, match=r"needs model\.lora"):
        Recipe.model_validate(recipe)


def test_an_adapter_is_sampled_beside_the_weights_it_was_trained_on(tmp_path: Path) -> None:
    lora = {"model": {"lora": {}}, "sampling": {"backend": {"lora": "adapter"}}}
    plan = vllm_plan(**lora)
    for stage, maker, below in (("generate-1", "seed", "sft"), ("evaluate-1", "refine-1", "seed")):
        inputs = plan.stage(stage).inputs
        assert inputs["policy"] == StageOutput(maker, "model")
        assert inputs["adapter"] == StageOutput(maker, "adapter")
        assert inputs["base"] == StageOutput(below, "model")
    merged_plan = vllm_plan(model={"lora": {}})
    assert "adapter" not in merged_plan.stage("generate-1").inputs
    assert merged_plan.stage("generate-1").key != plan.stage("generate-1").key
    assert merged_plan.stage("seed").key == plan.stage("seed").key


def test_where_it_runs_does_not_change_a_key(tmp_path: Path) -> None:
    one = vllm_plan()
    backend = {"tensor_parallel_size": 2, "data_parallel_size": 4, "gpu_memory_utilization": 0.5, "max_model_len": 100}
    other = vllm_plan(sampling={"backend": backend}, compute={"vllm_python": "/there/python"})
    assert [stage.key for stage in one.stages] == [stage.key for stage in other.stages]


# --- starting


def test_stages_that_sample_with_vllm_and_no_others_get_processes_of_vllm(tmp_path: Path) -> None:
    compute = Compute(vllm_python="/there/python")
    plan = vllm_plan(sampling={"backend": {"data_parallel_size": 2, "tensor_parallel_size": 4}})
    found = {stage.id: vllm_processes_of(stage, compute) for stage in plan.stages if vllm_processes_of(stage, compute)}
    assert set(found) == {"evaluate-init", "evaluate-0", "generate-1", "evaluate-1"}
    assert set(found.values()) == {VllmProcesses("/there/python", 2, 4)}
    assert vllm_processes_of(plan.stage("generate-1"), Compute()) == VllmProcesses(sys.executable, 2, 4)


# --- what vLLM says, in one line


SEE_ABOVE = RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {}")
PREFIX = "(EngineCore pid=12) ERROR 01-02 03:04:05 [core.py:1512] "


@pytest.mark.parametrize(
    ("said", "fix"),
    [
        (
            "Free memory on device cuda:0 (3.1/79.2 GiB) on startup is less than desired.",
            "gpu_memory_utilization lower",
        ),
        ("No available memory for the cache blocks.", "gpu_memory_utilization or tensor_parallel_size higher"),
        (
            "To serve at least one request with the model's max seq len (32768), (4.0 GiB KV cache is needed, which is "
            "larger than the available KV cache memory (1.5 GiB).",
            "max_model_len (or model.max_length) lower",
        ),
        ("CUDA out of memory. Tried to allocate 2.00 GiB.", "max_model_len lower"),
    ],
)
def test_memory_names_the_keys_to_change(said: str, fix: str) -> None:
    """The engine's process writes its error to the log only."""
    log = f"{PREFIX}Traceback:\n{PREFIX}ValueError: {said} See the documentation.\n{PREFIX}RuntimeError: root cause\n"
    error = _start_error(SEE_ABOVE, Model(model_name_or_path="org/big"), log)
    assert error.exit_code == 75
    assert "\n" not in str(error)
    assert said.rstrip(".") + ";" in str(error)
    assert fix in error.fix
    assert "documentation" not in str(error)


def test_a_cause_of_its_own_needs_no_log() -> None:
    pydantic = (
        "1 validation error for ModelConfig\n  Value error, Architectures ['Foo'] are not supported. Try x [type=v"
    )
    error = _start_error(ValueError(pydantic), Model(model_name_or_path="org/foo"), f"{PREFIX}ValueError: other")
    assert error.exit_code == 2
    assert str(error).startswith("org/foo: vLLM cannot serve this model: Architectures ['Foo'] are not supported;")


def test_without_a_log_the_error_itself_is_told() -> None:
    error = _engine_error(SEE_ABOVE, Model(model_name_or_path="m"), "")
    assert error.exit_code == 1
    assert "Engine core initialization failed" in str(error)
    assert _first_sentence("") == ""
