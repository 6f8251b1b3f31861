"""Trainings shared out over two processes by FSDP2 and DeepSpeed do what one process does; on the CPU, over gloo."""

import importlib.util
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import pytest
from safetensors.torch import load_file

from spa_recipes.estimates.checkpoints import bytes_per_parameter
from spa_recipes.estimates.memory import Sharding
from tests.kit.together import KILLED, results, train_together
from tests.kit.training import same_weights, trace

KINDS = ("sft", "dpo", "refine0", "refine", "reward")
PLAIN = (*KINDS, *(f"{kind}+lora" for kind in KINDS), "sft+ckpt", "refine+ckpt", "refine+lora+ckpt")
QLORA = ("sft+qlora", "refine0+qlora", "refine+qlora")
HALF = ("sft+bf16", "dpo+bf16", "refine0+bf16", "refine+bf16", "refine+lora+bf16", "reward+bf16")
FEW = ("refine+counted", "refine+lora+bf16", "refine+zeros")
"""What the default run does: a live reference, half precision with derivatives, and a wrong reference."""
KILL_AT = 3  # the checkpoint before it is of step 2; the threshold's window is in use by then

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed (extra deepspeed)"
)
needs_bitsandbytes = importlib.util.find_spec("bitsandbytes") is not None
WAYS = [
    pytest.param("none", id="ddp"),
    pytest.param("fsdp2"),
    pytest.param("zero2", marks=needs_deepspeed),
    pytest.param("zero3", marks=needs_deepspeed),
]


def build_policy(folder: Path, hidden_size: int, intermediate_size: int) -> Path:
    """A policy of two layers in a folder."""
    from spa_recipes.sandbox.model import build_model

    sizes = {"hidden_size": hidden_size, "intermediate_size": intermediate_size}
    build_model(folder, **sizes, num_layers=2, num_heads=2, initializer_range=0.3, seed=0)
    return folder


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_policy(tmp_path_factory.mktemp("policy"), hidden_size=32, intermediate_size=48)


def losses(folder: Path, cell: str) -> list[float]:
    return [
        json.loads(line)["loss"] for line in (folder / cell / "out" / "training_log.jsonl").read_text().splitlines()
    ]


def check_equal(ours: Path, theirs: Path, cells: Sequence[str]) -> None:
    """Losses, pairs with the threshold's decisions, and final weights agree within rounding."""
    for cell in cells:
        half, thin = "bf16" in cell, "lora" in cell
        rel, least = (2e-2, 2e-2) if half else (1e-4, 1e-5)
        assert losses(ours, cell) == pytest.approx(losses(theirs, cell), rel=rel, abs=least), cell
        # In bfloat16, a weight that lies between two numbers goes to either.
        tolerance = 0.05 if half else 1e-4
        assert same_weights(ours / cell / "out", theirs / cell / "out", tolerance=tolerance), cell
        if thin and not cell.startswith("reward"):
            adapters = [load_file(folder / cell / "adapter" / "adapter_model.safetensors") for folder in (ours, theirs)]
            assert adapters[0].keys() == adapters[1].keys()
            assert not list((ours / cell / "adapter").glob("*.bin"))  # no pickled arguments
        if cell.startswith("refine"):
            pairs = [trace(folder / cell) for folder in (ours, theirs)]
            assert [pair["row"] for pair in pairs[0]] == [pair["row"] for pair in pairs[1]]
            off = [abs(mine["p_detect"] - yours["p_detect"]) for mine, yours in zip(*pairs, strict=True)]
            # In bfloat16, a few pairs with large margins are off by 0.1.
            assert statistics.median(off) < 0.01 if half else max(off) < 1e-3, cell
            assert half or [pair["flagged"] for pair in pairs[0]] == [pair["flagged"] for pair in pairs[1]], cell


# --- three cells in every run ---


@pytest.fixture(scope="module")
def few(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("few")
    assert train_together(folder, policy, FEW, "fsdp2") == 0, (folder / "log").read_text()
    return folder


def test_policy_and_live_reference_are_shared_out(few: Path) -> None:
    """Margins of 0 at the first step: log-probs leave both models in float32, and the reference is whole on each."""
    for cell in FEW[:2]:
        for left in results(few, cell):
            assert left["sharding"] == "fsdp2"
            assert left["history"][0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
            assert abs(left["history"][0]["rewards/margins"]) < 1e-4


def test_policy_and_reference_are_gathered_layer_by_layer(few: Path) -> None:
    """Of two layers, one is whole when one is passed; a model that is shared out as one piece has both."""
    for left in results(few, "refine+counted"):
        assert left["most_whole_layers"] == {"policy": 1, "reference": 1}


def test_the_detector_differentiates_where_weights_are_shared_out(few: Path) -> None:
    assert [left["along"] for left in results(few, "refine+lora+bf16")] == [True, True]


def test_a_reference_of_zeros_on_one_process_is_found_in_the_first_step(few: Path) -> None:
    for left in results(few, "refine+zeros"):
        assert left["error"].startswith("the margins before the first step are ")
        assert "and should be 0" in left["error"]


def test_what_is_saved_is_whole(few: Path, policy: Path) -> None:
    for cell in FEW[:2]:
        assert (
            load_file(few / cell / "out" / "model.safetensors").keys() == load_file(policy / "model.safetensors").keys()
        )
    assert (few / "refine+lora+bf16" / "adapter" / "adapter_config.json").is_file()


# --- some with DeepSpeed, which has to be installed ---

ZERO = ("sft", "refine", "refine+lora+bf16")


@pytest.fixture(scope="module")
def zero_alone(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zero_alone")
    assert train_together(folder, policy, ZERO, processes=1) == 0, (folder / "log").read_text()
    return folder


@pytest.mark.deepspeed
def test_two_processes_with_zero2_do_what_one_does(policy: Path, zero_alone: Path, tmp_path: Path) -> None:
    assert train_together(tmp_path, policy, ZERO, "zero2") == 0, (tmp_path / "log").read_text()
    assert {left["sharding"] for cell in ZERO for left in results(tmp_path, cell)} == {"zero2"}
    check_equal(tmp_path, zero_alone, ZERO)


@pytest.mark.deepspeed
def test_two_processes_with_zero3_do_what_one_does_also_when_killed(
    policy: Path, zero_alone: Path, tmp_path: Path
) -> None:
    assert train_together(tmp_path, policy, ["refine"], "zero3", kill_at=KILL_AT) == KILLED
    assert train_together(tmp_path, policy, ZERO, "zero3") == 0, (tmp_path / "log").read_text()
    assert {left["sharding"] for cell in ZERO for left in results(tmp_path, cell)} == {"zero3"}
    assert results(tmp_path, "refine")[0]["metrics"]["resumed_from_step"] == KILL_AT - 1
    check_equal(tmp_path, zero_alone, ZERO)


# --- all of them ---


@pytest.fixture(scope="module")
def alone(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cells in one process."""
    folder = tmp_path_factory.mktemp("alone")
    cells = [*PLAIN, *HALF, *(QLORA if needs_bitsandbytes else ())]
    assert train_together(folder, policy, cells, processes=1) == 0, (folder / "log").read_text()
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("sharding", WAYS)
def test_two_processes_do_what_one_does(sharding: str, policy: Path, alone: Path, tmp_path: Path) -> None:
    cells = [*PLAIN, *HALF, *(QLORA if needs_bitsandbytes and sharding != "zero3" else ())]
    assert train_together(tmp_path, policy, cells, sharding) == 0, (tmp_path / "log").read_text()
    assert {left["sharding"] for cell in cells for left in results(tmp_path, cell)} == {sharding}
    derived = [cell for cell in HALF if cell.startswith("refine")]
    assert all(left["along"] for cell in derived for left in results(tmp_path, cell))
    check_equal(tmp_path, alone, cells)


RESUMED = ("sft", "refine", "refine+lora")


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("sharding", WAYS[1:])
def test_a_killed_training_goes_on(sharding: str, policy: Path, tmp_path: Path) -> None:
    assert train_together(tmp_path / "straight", policy, RESUMED, sharding) == 0
    for cell in RESUMED:
        assert train_together(tmp_path / "killed", policy, [cell], sharding, kill_at=KILL_AT) == KILLED
    assert train_together(tmp_path / "killed", policy, RESUMED, sharding) == 0, (tmp_path / "killed/log").read_text()
    for cell in RESUMED:
        assert results(tmp_path / "killed", cell)[0]["metrics"]["resumed_from_step"] == KILL_AT - 1
    check_equal(tmp_path / "killed", tmp_path / "straight", RESUMED)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", WAYS)
@pytest.mark.parametrize("cell", ["sft", "sft+bf16"])
def test_a_checkpoint_takes_the_bytes_that_were_estimated(sharding: Sharding, cell: str, tmp_path: Path) -> None:
    (folder := tmp_path / "policy").mkdir()
    policy = build_policy(folder, hidden_size=256, intermediate_size=512)  # large beside the names of its tensors
    parameters = sum(tensor.numel() for tensor in load_file(policy / "model.safetensors").values())
    assert train_together(tmp_path, policy, [cell], sharding, kill_at=KILL_AT) == KILLED
    (checkpoint,) = (tmp_path / cell / "checkpoints").glob("checkpoint-*")
    size = sum(file.stat().st_size for file in checkpoint.rglob("*") if file.is_file())
    estimate = bytes_per_parameter(sharding, weight=2 if "bf16" in cell else 4)
    assert size / parameters == pytest.approx(estimate, rel=0.06)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_checkpoint_is_shared_out_anew_or_refused(policy: Path, tmp_path: Path) -> None:
    assert train_together(tmp_path / "straight", policy, ["refine"], "fsdp2") == 0
    assert train_together(tmp_path / "killed", policy, ["refine"], "fsdp2", kill_at=KILL_AT) == KILLED
    assert train_together(tmp_path / "killed", policy, ["refine"], processes=1) == 0
    (refused,) = results(tmp_path / "killed", "refine", processes=1)
    assert refused["error"] == (
        "the training was begun with sharding fsdp2 (SHARDED_STATE_DICT) in 2 processes; with sharding none in 1 "
        "process it cannot go on from its checkpoint"
    )
    assert train_together(tmp_path / "killed", policy, ["refine"], "fsdp2", processes=1) == 0
    (resumed,) = results(tmp_path / "killed", "refine", processes=1)
    assert resumed["metrics"]["resumed_from_step"] == KILL_AT - 1
    check_equal(tmp_path / "killed", tmp_path / "straight", ["refine"])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("sharding", WAYS[1:])
def test_nothing_of_a_step_that_is_not_finite_is_kept(sharding: str, policy: Path, tmp_path: Path) -> None:
    """DeepSpeed has taken the step when it is found; no checkpoint and no model have it."""
    assert train_together(tmp_path, policy, ["dpo+nan"], sharding) == 0, (tmp_path / "log").read_text()
    for left in results(tmp_path, "dpo+nan"):
        assert left["error"] == "the loss of optimizer step 4 is not finite"
    assert [path.name for path in (tmp_path / "dpo+nan" / "checkpoints").glob("checkpoint-*")] == ["checkpoint-2"]
    assert not (tmp_path / "dpo+nan" / "out" / "model.safetensors").exists()
