"""A whole run in bfloat16: a policy is what is stored, it keeps what was learned, and a kill changes no byte of it."""

import json
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.kit.cli import run_spa, start
from tests.kit.processes import processes_of, wait_for
from tests.kit.recipes import mini, write_recipe
from tests.kit.runs import metrics, output, outputs, stage_dir

RECIPE = mini(
    model={"dtype": "bfloat16"},
    data={"seed_labels": 24, "prompts_per_iteration": [40, 16], "heldout": 0},
    sft={"data": {"type": "sandbox", "rows": 96}, "save_steps": 4},
    seed_training={"global_batch_size": 8, "per_device_train_batch_size": 8},
    sampling={"max_tokens": 16},
    refine={"save_steps": 1, "global_batch_size": 8, "per_device_train_batch_size": 8},
    evaluation={"enabled": False},
)
TRAINED = ("sft", "seed", "refine-1", "refine-2")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the recipe has run in one go."""
    folder = tmp_path_factory.mktemp("whole")
    write_recipe(folder / "mini.yaml", RECIPE)
    done = run_spa(folder, "run", "mini.yaml")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("stage", TRAINED)
def test_a_stored_policy_is_in_bfloat16_and_keeps_its_update(whole: Path, stage: str) -> None:
    folder = output(whole, stage, "model")
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert metrics(whole, stage)["update_kept"] == pytest.approx(1.0, abs=0.1)
    last = json.loads((folder / "training_log.jsonl").read_text().splitlines()[-1])
    assert last["update_kept"] == metrics(whole, stage)["update_kept"]


def test_rounding_to_nearest_would_have_lost_the_refinement(whole: Path) -> None:
    assert metrics(whole, "refine-2")["update_visible"] < 0.5
    assert metrics(whole, "refine-2")["rounding_to_update"] > 1.0


def test_sampler_judge_next_stage_and_its_reference_read_the_stored_policy(whole: Path) -> None:
    stored = output(whole, "refine-1", "model").resolve()
    for stage, roles in (("generate-2", ["policy"]), ("refine-2", ["policy", "reference"])):
        folder = stage_dir(whole, stage)
        inputs = json.loads((folder / "attempts" / "1" / "spec.json").read_text())["inputs"]
        assert all((folder / inputs[role]).resolve() == stored for role in roles)
        assert not {"adapter", "base"} & inputs.keys()


def test_people_are_shown_what_is_kept(whole: Path) -> None:
    shown = run_spa(whole, "status", "mini").stdout
    assert shown.count("update kept") == len(TRAINED)
    card = (whole / "runs" / "mini" / "final" / "README.md").read_text()
    for label in ("update kept by the saved model", "update that rounding to nearest would keep"):
        assert label in card
    done = run_spa(whole, "report", "mini")
    assert done.returncode == 0, done.stderr
    (report,) = (whole / "runs" / "mini").glob("*.html")
    assert "update kept by the saved model" in report.read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.slow  # test_training_rounding.py has this for each training
def test_killed_and_resumed_it_ends_with_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    write_recipe(tmp_path / "mini.yaml", RECIPE)
    running = start(tmp_path, "run", "mini.yaml")
    wait_for(
        lambda: list(
            (tmp_path / "runs" / "mini" / "stages").glob("*-refine-1-*/work/checkpoints/*/spa_checkpoint.json")
        )
    )
    assert running.kill() == -signal.SIGKILL
    wait_for(lambda: not processes_of(tmp_path))
    done = run_spa(tmp_path, "resume")
    assert done.returncode == 0, done.stderr
    assert metrics(tmp_path, "refine-1")["resumed_from_step"] >= 1
    ours, theirs = outputs(tmp_path), outputs(whole)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []
