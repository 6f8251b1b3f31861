"""A whole recipe in bfloat16: a policy is what is stored and keeps what was learned, every reading of the implicit
reward is right in half precision and says how, and a kill changes no byte.
"""

import json
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from spa_recipes.data.rows import read_jsonl
from tests.kit.cli import run_spa, start
from tests.kit.processes import processes_of, wait_for
from tests.kit.recipes import mini, write_recipe
from tests.kit.runs import metrics, output, outputs, stage_dir

RECIPE = mini(
    name="half",
    model={"dtype": "bfloat16"},
    data={"pairs": {"rows": 120}, "seed_labels": 32, "prompts_per_iteration": [40, 16], "heldout": 12},
    sft={"data": {"rows": 96}, "save_steps": 4},
    seed_training={"global_batch_size": 8, "per_device_train_batch_size": 8},
    sampling={"max_tokens": 16},
    noise={"lambdas": [0.0, 0.5]},
    refine={"save_steps": 1, "global_batch_size": 8, "per_device_train_batch_size": 8},
    evaluation={"max_prompts": 8, "reward": "seed"},
    judge={"type": "implicit_reward", "min_margin_in_noise": 0.5},
)
TRAINED = ("sft", "seed", "refine-1", "refine-2")


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("half")
    write_recipe(folder / "half.yaml", RECIPE)
    done = run_spa(folder, "run", "half.yaml")
    assert done.returncode == 0, done.stderr + done.stdout
    return folder, done.stdout + done.stderr


def test_every_reading_of_the_implicit_reward_says_its_way_and_error(half: tuple[Path, str]) -> None:
    said = [line for line in half[1].splitlines() if "median error of a margin" in line]
    for stage, name in (("evaluate-0", "heldout"), ("evaluate-init", "reward"), ("log-ratios-1", "log-ratios")):
        assert any(stage in line and f" {name}: " in line for line in said), said
    assert "the log-probs that sampling kept differ from scored ones by" in half[1]


def test_labels_come_with_the_standard_error_of_their_margin(half: tuple[Path, str]) -> None:
    home, _ = half
    judgments, pairs = (read_jsonl(output(home, "judge-1", f"{name}.jsonl", "half")) for name in ("judgments", "pairs"))
    assert [row["standard_error"] for row in judgments] == [row["standard_error"] for row in pairs]
    assert all(row["margin"] >= 0.5 * row["standard_error"] > 0 for row in pairs)
    for row in judgments:
        assert row["rewards"] == pytest.approx([0.1 * ratio for ratio in row["log_ratios"]])
    found = metrics(home, "judge-1", "half")
    assert found["method"] == metrics(home, "log-ratios-1", "half")["method"]
    assert found["standard_error"] == pytest.approx(sum(row["standard_error"] for row in pairs) / len(pairs))
    assert found["dropped_uncertain"] + len(pairs) + found["dropped_identical"] + found["dropped_empty"] == 40


def test_held_out_labels_are_judged_by_log_ratios(half: tuple[Path, str]) -> None:
    home, _ = half
    assert read_jsonl(output(home, "evaluate-init", "heldout.jsonl", "half")) == []
    rows = read_jsonl(output(home, "evaluate-1", "heldout.jsonl", "half"))
    right = [row["chosen_log_ratio"] > row["rejected_log_ratio"] for row in rows]
    assert metrics(home, "evaluate-1", "half")["heldout_accuracy"] == pytest.approx(sum(right) / len(right))
    assert 0 <= metrics(home, "evaluate-1", "half")["heldout_in_noise"] <= 1


def test_report_and_card_show_the_way_and_the_noise(half: tuple[Path, str]) -> None:
    home, _ = half
    done = run_spa(home, "report", "half")
    assert done.returncode == 0, done.stderr
    report, card = ((home / "runs" / "half" / name).read_text() for name in ("report.html", "final/README.md"))
    way = metrics(home, "log-ratios-1", "half")["method"]
    for text in (report, card):
        assert way in text
        assert "update kept by the saved model" in text
        assert "standard error of a margin" in text


def test_the_reference_of_a_plain_detector_is_scored(half: tuple[Path, str]) -> None:
    home, _ = half
    (plan,) = (home / "runs" / "half").glob("plan.json")
    stages = {stage["id"]: stage for stage in json.loads(plan.read_text())}
    assert "its log-probs: scored" in json.dumps(stages["refine-1"])
    assert metrics(home, "refine-1", "half")["steps"] >= 1


def test_the_detector_says_the_error_of_its_derivatives(half: tuple[Path, str]) -> None:
    """With lambda = 0 and a small update, a difference of log-probs would be little else than rounding."""
    home, text = half
    assert 0 < metrics(home, "refine-1", "half")["detector_noise"] < 0.2
    assert "p~ of the noise detector is a difference" not in text


# --- what is stored


@pytest.mark.parametrize("stage", TRAINED)
def test_a_stored_policy_is_in_bfloat16_and_keeps_its_update(half: tuple[Path, str], stage: str) -> None:
    folder = output(half[0], stage, "model", "half")
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert metrics(half[0], stage, "half")["update_kept"] == pytest.approx(1.0, abs=0.1)
    last = json.loads((folder / "training_log.jsonl").read_text().splitlines()[-1])
    assert last["update_kept"] == metrics(half[0], stage, "half")["update_kept"]


def test_rounding_to_nearest_would_have_lost_the_refinement(half: tuple[Path, str]) -> None:
    assert metrics(half[0], "refine-2", "half")["update_visible"] < 0.5
    assert metrics(half[0], "refine-2", "half")["rounding_to_update"] > 1.0


def test_sampler_judge_next_stage_and_its_reference_read_the_stored_policy(half: tuple[Path, str]) -> None:
    stored = output(half[0], "refine-1", "model", "half").resolve()
    for stage, roles in (("generate-2", ["policy"]), ("refine-2", ["policy", "reference"])):
        folder = stage_dir(half[0], stage, "half")
        inputs = json.loads((folder / "attempts" / "1" / "spec.json").read_text())["inputs"]
        assert all((folder / inputs[role]).resolve() == stored for role in roles)
        assert not {"adapter", "base"} & inputs.keys()


def test_people_are_shown_what_is_kept(half: tuple[Path, str]) -> None:
    home, _ = half
    shown = run_spa(home, "status", "half").stdout
    assert shown.count("update kept") == len(TRAINED)
    card = (home / "runs" / "half" / "final" / "README.md").read_text()
    for label in ("update kept by the saved model", "update that rounding to nearest would keep"):
        assert label in card


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.slow  # test_training_rounding.py has this for each training
def test_killed_and_resumed_it_ends_with_the_same_bytes(half: tuple[Path, str], tmp_path: Path) -> None:
    write_recipe(tmp_path / "half.yaml", RECIPE)
    running = start(tmp_path, "run", "half.yaml")
    wait_for(
        lambda: list(
            (tmp_path / "runs" / "half" / "stages").glob("*-refine-1-*/work/checkpoints/*/spa_checkpoint.json")
        )
    )
    assert running.kill() == -signal.SIGKILL
    wait_for(lambda: not processes_of(tmp_path))
    done = run_spa(tmp_path, "resume")
    assert done.returncode == 0, done.stderr
    assert metrics(tmp_path, "refine-1", "half")["resumed_from_step"] >= 1
    ours, theirs = outputs(tmp_path, "half"), outputs(half[0], "half")
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []
