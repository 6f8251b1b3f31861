"""accelerate's own configuration is looked at before anything starts."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from spa_recipes.errors import RecipeError
from spa_recipes.run import launch_preflight, packages
from spa_recipes.run.launch_preflight import check_launch
from tests.kit.plans import plan_of

GOOD: dict[str, Any] = {"distributed_type": "MULTI_GPU", "num_processes": 2}
FSDP2 = {"fsdp_version": 2, "fsdp_cpu_ram_efficient_loading": False}


@pytest.fixture(autouse=True)
def has_deepspeed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_preflight, "is_installed", lambda name: True)


def check(tmp_path: Path, content: Any, **changes: Any) -> None:
    path = tmp_path / "accelerate.yaml"
    if content is not None:
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    executor = {"type": "accelerate", "num_processes": 2, "config_file": str(path)}
    small = {name: {"per_device_train_batch_size": 4} for name in ("sft", "seed_training", "refine")}
    plan = plan_of(**{"compute": {"executor": executor}, **small, **changes})
    check_launch(plan.stages, plan.recipe)


def refused(tmp_path: Path, content: Any, **changes: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        check(tmp_path, content, **changes)
    assert str(tmp_path / "accelerate.yaml") in caught.value.where
    return f"{caught.value.what}; {caught.value.fix}"


def test_a_file_that_says_what_the_recipe_says_is_taken(tmp_path: Path) -> None:
    check(tmp_path, GOOD)
    check(tmp_path, GOOD | {"distributed_type": "FSDP", "fsdp_config": FSDP2})
    check(tmp_path, GOOD | {"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": 2}})


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert refused(tmp_path, None) == "there is no such file; check the path"
    assert refused(tmp_path, "{").startswith("cannot be read: ")
    assert refused(tmp_path, "just words").startswith("holds no settings; `accelerate config")


def test_another_number_of_processes(tmp_path: Path) -> None:
    text = refused(tmp_path, GOOD | {"num_processes": 8})
    assert text == "num_processes: is 8, and compute.executor.num_processes is 2; make them equal"


def test_other_machines_on_which_nothing_would_be_started(tmp_path: Path) -> None:
    """The processes here would wait for them without a word."""
    text = refused(tmp_path, GOOD | {"num_machines": 2, "machine_rank": 0})
    assert text.startswith("num_machines: is 2, and nothing would be started on the other machines; ")
    assert "compute.executor.type: slurm or ray" in text
    check(tmp_path, GOOD | {"num_machines": 1})


def test_another_precision(tmp_path: Path) -> None:
    """accelerate would train in it without a word."""
    text = refused(tmp_path, GOOD | {"mixed_precision": "bf16"}, model={"dtype": "float32"})
    assert text == "mixed_precision: is bf16, and model.dtype is float32; set it to 'no'"


def test_fsdp1_is_refused_by_name(tmp_path: Path) -> None:
    for version in ({}, {"fsdp_version": 1}):
        text = refused(tmp_path, GOOD | {"distributed_type": "FSDP", "fsdp_config": version})
        assert "FSDP1 is not supported; set it to 2" in text
        assert "compute.executor.sharding: fsdp2" in text


def test_a_reference_that_only_the_first_process_would_load(tmp_path: Path) -> None:
    content = GOOD | {"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": 2}}  # true is the default
    text = refused(tmp_path, content, noise={"lambdas": [0.5, 0.0]})
    assert "fsdp_cpu_ram_efficient_loading: is true" in text
    check(tmp_path, content, noise={"lambdas": [0.0, 0.0]})


def test_another_accumulation_of_gradients(tmp_path: Path) -> None:
    for steps, wanted in (("auto", None), (3, "set it to auto")):
        content = GOOD | {"distributed_type": "DEEPSPEED", "deepspeed_config": {"gradient_accumulation_steps": steps}}
        if wanted is None:
            check(tmp_path, content)
        else:
            text = refused(tmp_path, content)
            assert text.startswith("deepspeed_config.gradient_accumulation_steps: ")
            assert "is 3, and the batches of sft need" in text
            assert text.endswith(wanted)


def test_deepspeeds_own_file_counts_too(tmp_path: Path) -> None:
    own = tmp_path / "ds.json"
    own.write_text('{"gradient_accumulation_steps": 7}')
    content = GOOD | {"distributed_type": "DEEPSPEED", "deepspeed_config": {"deepspeed_config_file": str(own)}}
    assert "gradient_accumulation_steps is 7" in refused(tmp_path, content)


def test_deepspeed_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (launch_preflight, packages):
        monkeypatch.setattr(module, "is_installed", lambda name: False)
    content = GOOD | {"distributed_type": "DEEPSPEED", "deepspeed_config": {}}
    assert "DeepSpeed is not installed here; pip install 'spa-recipes[deepspeed]'" in refused(tmp_path, content)
    small = {name: {"per_device_train_batch_size": 4} for name in ("sft", "seed_training", "refine")}
    plan = plan_of(compute={"executor": {"type": "accelerate", "num_processes": 2, "sharding": "zero2"}}, **small)
    (missing,) = packages.missing_packages(plan.recipe)
    assert missing.what == "zero2 needs DeepSpeed, which is not installed here"
