"""What does not fit a machine is told before anything starts, with what to set."""

from pathlib import Path
from typing import Any

import pytest

from spa_recipes.errors import RecipeError
from spa_recipes.estimates import Hardware, needs, seconds_of, stated_hardware
from spa_recipes.plan import KINDS, Plan
from spa_recipes.recipe.schema import Recipe
from spa_recipes.run import fit
from spa_recipes.run.devices import Accelerators
from spa_recipes.run.fit import check_fit, host_bytes, is_tight, misfit, not_shared_out
from tests.kit.plans import plan_of, vllm_plan
from tests.kit.recipes import mini

ONE, FOUR = Hardware(1, 80 * 2**30, "NVIDIA H100"), Hardware(4, 80 * 2**30, "NVIDIA H100")
ENOUGH = 10**12
SMALL = {name: {"per_device_train_batch_size": 4} for name in ("sft", "seed_training", "refine")}


def big(**changes: Any) -> Plan:
    model = {"model_name_or_path": "seven-b", "dtype": "bfloat16", "num_parameters": 7.24e9, "max_length": 2048}
    executor = {"compute": {"executor": {"type": "local"}}}
    return plan_of(**{"model": model, "sft": None, **executor, **changes})


def test_a_full_training_of_7b_does_not_fit_one_gpu_and_adapters_do() -> None:
    plan = big()
    for hardware, fix in ((ONE, "model.lora"), (FOUR, "num_processes: 4")):
        problem = misfit(plan.stage("seed"), plan, hardware, ENOUGH)
        assert problem is not None
        assert problem.what.startswith("does not fit: 116 GB on each GPU before any activation")
        assert "58.0 GB optimizer" in problem.what.replace("57.9", "58.0")
        assert problem.what.endswith("and NVIDIA H100 has 85.9 GB")
        assert problem.where == "seed"
        assert fix in problem.fix
    adapters = big(model={**plan.recipe.model.model_dump(), "lora": {}})
    assert misfit(adapters.stage("seed"), adapters, ONE, ENOUGH) is None


def test_long_rows_are_only_warned_of() -> None:
    plan = big(model={**big().recipe.model.model_dump(), "lora": {}, "max_length": 100_000})
    assert misfit(plan.stage("seed"), plan, ONE, ENOUGH) is None
    assert is_tight(plan.stage("seed"), plan, ONE)
    assert not is_tight(big().stage("log-ratios-1"), big(), ONE)


def test_the_machines_own_memory_counts() -> None:
    plan = big()
    problem = misfit(plan.stage("seed"), plan, Hardware(1, 200 * 2**30), 32 * 10**9)
    assert problem is not None
    assert "of the machine's own memory to load and save weights, and there are 32.0 GB" in problem.what
    on_cpu = misfit(plan.stage("seed"), plan, None, 64 * 10**9)
    assert on_cpu is not None
    assert on_cpu.what.endswith("and this machine has 64.0 GB")


def test_vllm_has_its_share_of_a_gpu() -> None:
    model = {"model_name_or_path": "seven-b", "dtype": "bfloat16", "num_parameters": 7.24e9, "max_length": 2048}
    plan = vllm_plan(model=model, sft=None, sampling={"backend": {"gpu_memory_utilization": 0.5}})
    stage = plan.stage("generate-1")
    assert misfit(stage, plan, Hardware(1, 40 * 2**30), ENOUGH) is None
    problem = misfit(stage, plan, Hardware(1, 24 * 2**30), ENOUGH)
    assert problem is not None
    assert "tensor_parallel_size" in problem.fix


def test_it_is_checked_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "check_supported", lambda: None)
    monkeypatch.setattr(fit, "hardware_here", lambda: ONE)
    plan = big()
    with pytest.raises(RecipeError, match="does not fit"):
        check_fit(plan.stages, plan)
    check_fit([], plan)  # all is done
    one = {"per_device_train_batch_size": 1}
    eight = big(compute={"executor": {"type": "accelerate", "num_processes": 8}}, seed_training=one, refine=one)
    with pytest.raises(RecipeError, match="asks for 8 processes, one for each GPU, and there are 1 GPUs"):
        check_fit(eight.stages, eight)
    monkeypatch.setattr(fit, "hardware_here", lambda: FOUR)
    flash = big(model={**plan.recipe.model.model_dump(), "lora": {}, "attn_implementation": "flash_attention_2"})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"flash_attention_2 is not installed \(pip install flash_attn\)"):
        check_fit(flash.stages, flash)
    monkeypatch.setattr(fit, "hardware_here", lambda: None)
    with pytest.raises(RecipeError, match="flash_attention_2 needs a GPU"):
        check_fit(flash.stages, flash)


def test_a_training_is_not_shared_out_on_a_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It would be found by the first training only, after minutes of data and sampling."""
    monkeypatch.setattr(fit, "check_supported", lambda: None)
    monkeypatch.setattr(fit, "hardware_here", lambda: None)
    two = {"type": "accelerate", "num_processes": 2}
    config = tmp_path / "accelerate.yaml"
    for executor, words in (
        ({"sharding": "fsdp2"}, "fsdp2 shares a training out over GPUs, and there is none here"),
        ({"sharding": "zero3"}, "zero3 shares"),
        ({"config_file": str(config), "distributed_type": "FSDP"}, "FSDP shares"),
        ({"config_file": str(config), "distributed_type": "DEEPSPEED"}, "DeepSpeed shares"),
    ):
        config.write_text(f"distributed_type: {executor.pop('distributed_type', 'NO')}")
        plan = plan_of(compute={"executor": {**two, **executor}}, **SMALL)
        with pytest.raises(RecipeError, match=words) as caught:
            check_fit(plan.stages, plan)
        assert caught.value.where == f"compute.executor.{next(iter(executor))}"
        check_fit([stage for stage in plan.stages if "train" not in KINDS[stage.kind].work], plan)
        assert not_shared_out(plan.stages, plan.recipe, FOUR) is None  # that a plan is for, wherever it is made
    config.write_text("distributed_type: MULTI_CPU")
    for whole in ({}, {"sharding": "none"}, {"config_file": str(config)}):
        plan = plan_of(compute={"executor": {**two, **whole}}, **SMALL)
        check_fit(plan.stages, plan)


def test_half_precision_on_a_mac_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "check_supported", lambda: None)
    monkeypatch.setattr(fit, "hardware_here", lambda: None)
    monkeypatch.setattr(fit, "accelerators", lambda: Accelerators(mps=True))
    monkeypatch.setattr(fit, "hides_gpus", lambda: False)
    local = {"executor": {"type": "local"}}
    plan = plan_of(model={"dtype": "bfloat16"}, compute=local)
    with pytest.raises(RecipeError, match="bfloat16 is not supported on a Mac's GPU"):
        check_fit(plan.stages, plan)
    plan = plan_of(compute=local)
    check_fit(plan.stages, plan)


def test_the_quickstart_fits_this_machine() -> None:
    plan = plan_of()
    check_fit(plan.stages, plan)
    assert (host_bytes() or 10**9) > 10**8


def test_batches_that_do_not_split_over_processes_are_a_mistake_of_the_recipe() -> None:
    three = mini(compute={"executor": {"type": "accelerate", "num_processes": 3}})
    with pytest.raises(ValueError, match=r"refine\.global_batch_size \(16\) does not split into 3 processes") as error:
        Recipe.model_validate(three)
    assert "make it a multiple of 48" in str(error.value)
    whole = {"global_batch_size": 48, "per_device_train_batch_size": 16}
    Recipe.model_validate(mini(compute=three["compute"], sft=whole, seed_training=whole, refine=whole))


def test_hardware_is_read_as_recipes_state_it() -> None:
    assert stated_hardware("4 GPUs with 80 GB") == Hardware(4, 80 * 2**30)
    assert stated_hardware("one GPU with 24 GB") == Hardware(1, 24 * 2**30)
    assert stated_hardware("2 x 8 GPUs with 80 GB") == Hardware(16, 80 * 2**30)
    assert stated_hardware("2 CPU cores") is None


def test_time_is_products_over_what_was_measured() -> None:
    """Measured: 114,752 tokens of 7.38 billion parameters in 2.83 s on one H200."""
    plan = plan_of(model={"model_name_or_path": "s", "dtype": "bfloat16", "num_parameters": 7.38e9}, sft=None, judge={})
    stage = plan.stage("log-ratios-1")
    h200 = Hardware(1, 141 * 10**9, "NVIDIA H200")
    three_passes = seconds_of(stage, plan.recipe, 114_752, h200)
    assert three_passes is not None
    assert three_passes / 3 == pytest.approx(2.83, rel=0.05)
    assert seconds_of(stage, plan.recipe, 114_752, Hardware(2, 141 * 10**9, "NVIDIA H200")) == three_passes / 2
    assert seconds_of(stage, plan.recipe, 114_752, Hardware(1, 1, "an unknown one")) is None
    assert needs(stage, plan).memory is not None
