"""How a training is shared out over processes: as the recipe says, or by what fits."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

import pytest
import torch

from spa_recipes import api
from spa_recipes.errors import RecipeError, StageError
from spa_recipes.estimates import Hardware, sharding_of, stated_hardware, training_memory
from spa_recipes.plan import KINDS
from spa_recipes.recipe.load import load_recipe
from spa_recipes.recipe.schema import Model, Recipe
from spa_recipes.run import worker
from spa_recipes.run.fit import misfit
from spa_recipes.stages.context import Context
from spa_recipes.training import checkpoints
from spa_recipes.training.common import trainer_arguments
from spa_recipes.training.env import TrainEnv
from spa_recipes.training.sharding import settle
from tests.kit.plans import plan_of
from tests.kit.recipes import merged, mini, write_recipe
from tests.kit.stages import spec_of
from tests.kit.training import preference

SMALL = {name: {"per_device_train_batch_size": 4} for name in ("sft", "seed_training", "refine")}


def plan_with(**executor: Any) -> Any:
    return plan_of(compute={"executor": {"type": "accelerate", "num_processes": 2, **executor}}, **SMALL)


def test_auto_shares_out_what_does_not_fit_as_a_whole() -> None:
    plan = plan_with()
    stage = plan.stage("refine-1")
    whole = training_memory(stage, plan.recipe, sharding="none", processes=2)
    assert whole is not None
    for memory, wanted in ((whole.total, "none"), (whole.total - 1, "fsdp2")):
        assert sharding_of(stage, plan.recipe, Hardware(2, memory)) == wanted
    assert sharding_of(stage, plan.recipe, None) == "none"  # a CPU


@pytest.mark.parametrize("kind", ["slurm", "ray"])
def test_nodes_of_a_cluster_share_out_as_the_gpus_of_one_machine_do(kind: str) -> None:
    def chosen(memory: int | None, **executor: Any) -> str | None:
        plan = plan_of(compute={"executor": {"type": kind, "nodes": 1, "gpus_per_node": 2, **executor}}, **SMALL)
        hardware = None if memory is None else Hardware(2, memory)
        return sharding_of(plan.stage("refine-1"), plan.recipe, hardware)

    plan = plan_with()
    whole = training_memory(plan.stage("refine-1"), plan.recipe, sharding="none", processes=2)
    assert whole is not None
    assert chosen(whole.total) == "none"
    assert chosen(whole.total - 1) == "fsdp2"
    assert chosen(None) == "fsdp2"  # GPUs whose memory is not known
    assert chosen(None, nodes=2, gpus_per_node=0) == "none"
    assert chosen(whole.total, sharding="zero2") == "zero2"


def test_the_shipped_recipe_for_slurm_shares_out_and_fits(tmp_path: Path) -> None:
    plan = api.prepare(Path("ultrafeedback_3p3_slurm"), run_dir=tmp_path / "run").plan
    recipe = plan.recipe
    hardware = stated_hardware(cast("Recipe", recipe).hardware)
    assert hardware is not None
    for stage in plan.stages:
        if "train" in KINDS[stage.kind].work:
            assert sharding_of(stage, recipe, hardware) == "fsdp2"
            assert misfit(stage, plan, hardware, None) is None


def test_the_recipe_may_say_it(tmp_path: Path) -> None:
    plan = plan_with(sharding="zero3")
    assert sharding_of(plan.stage("sft"), plan.recipe, Hardware(2, 1)) == "zero3"
    plan = plan_with(config_file=str(tmp_path / "a.yaml"))
    assert sharding_of(plan.stage("sft"), plan.recipe, Hardware(2, 1)) is None


def test_sharding_changes_no_key() -> None:
    keys = [[stage.key for stage in plan_with(sharding=how).stages] for how in ("none", "fsdp2", "zero2")]
    assert keys[0] == keys[1] == keys[2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"compute": {"executor": {"type": "accelerate", "num_processes": 1, "sharding": "fsdp2"}}},
            "fsdp2 shares a training out over processes, and there is one",
        ),
        (
            {"compute": {"executor": {"type": "slurm", "nodes": 1, "gpus_per_node": 1, "sharding": "fsdp2"}}},
            "set gpus_per_node to the number of GPUs",
        ),
        (
            {"compute": {"executor": {"type": "ray", "nodes": 2, "gpus_per_node": 0, "sharding": "zero2"}}},
            "zero2 shares a training out over GPUs, and gpus_per_node is 0",
        ),
        (
            {
                "compute": {
                    "executor": {"type": "accelerate", "num_processes": 2, "sharding": "zero2", "config_file": "a.yaml"}
                }
            },
            "config_file says how the training is shared out",
        ),
        (
            {
                "compute": {"executor": {"type": "accelerate", "num_processes": 2, "sharding": "zero3"}},
                "model": {"lora": {"load_in_4bit": True}, "dtype": "bfloat16"},
            },
            "zero3 cannot share out weights in 4 bits",
        ),
    ],
)
def test_settings_that_contradict(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_recipe(tmp_path / "a.yaml", merged(mini(**SMALL), changes))
    with pytest.raises(RecipeError, match=message):
        load_recipe(tmp_path / "a.yaml")


def test_a_training_that_is_not_shared_out_as_it_should_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate, on a CPU, does so without a word where its own configuration asks for FSDP or DeepSpeed."""
    nothing, accelerator = SimpleNamespace(fsdp=[], deepspeed=None), SimpleNamespace(ddp_handler=SimpleNamespace())
    settle(cast("Any", accelerator), cast("Any", nothing))
    for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"):
        monkeypatch.setenv(name, "true")
        with pytest.raises(StageError, match="accelerate does so on GPUs only"):
            settle(cast("Any", accelerator), cast("Any", nothing))
        monkeypatch.delenv(name)


def test_processes_wait_while_the_first_one_hashes_and_writes() -> None:
    """NCCL's half an hour is too short for 145 GB."""
    env = TrainEnv(Model(model_name_or_path="m"), "k", 1, Path("out"), Path("checkpoints"), cast("Any", None))
    ways: tuple[Literal["none", "fsdp2"], ...] = ("none", "fsdp2")
    for sharding in ways:
        arguments = trainer_arguments(preference(), replace(env, sharding=sharding), torch.float32, 8)
        assert arguments["ddp_timeout"] >= 12 * 3600


def test_a_training_that_was_left_alone_refuses(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "sft", {}, {})
    spec.runtime["training_processes"] = 2
    try:
        with pytest.raises(StageError, match="started 1 processes that train together, and the recipe asks for 2"):
            worker._check_processes(Context(spec))
        worker._check_processes(Context(spec, rank=1, world_size=2))
    finally:
        del spec.runtime["training_processes"]


@pytest.mark.parametrize(
    ("written", "now", "reads"),
    [
        (("none", 1), ("none", 4), True),
        (("fsdp2", 4), ("fsdp2", 2), True),
        (("zero3", 2), ("zero3", 2), True),
        (("zero3", 2), ("zero3", 4), False),
        (("zero2", 2), ("none", 1), False),  # transformers would take the weights and forget the optimizer
        (("fsdp2", 2), ("zero3", 2), False),
        (("none", 1), ("fsdp2", 2), False),
    ],
)
def test_a_checkpoint_of_another_launch(
    written: tuple[str, int], now: tuple[str, int], reads: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = ({"sharding": how, "processes": count, "form": ""} for how, count in (written, now))
    monkeypatch.setattr(checkpoints, "read_state", lambda path: {"launch": first})
    monkeypatch.setattr(checkpoints, "launch_of_this_training", lambda: second)
    if reads:
        checkpoints.check_launch(tmp_path / "checkpoint-2")
        return
    with pytest.raises(RecipeError, match=f"was begun with sharding {written[0]} in {written[1]} process"):
        checkpoints.check_launch(tmp_path / "checkpoint-2")
