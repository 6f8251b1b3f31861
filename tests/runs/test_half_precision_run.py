"""A whole recipe in bfloat16: every reading of the implicit reward is right in half precision, and says how."""

import json
from pathlib import Path

import pytest

from spa_recipes.data.rows import read_jsonl
from tests.kit.cli import run_spa
from tests.kit.recipes import mini, write_recipe
from tests.kit.runs import metrics, output

RECIPE = mini(
    name="half",
    model={"dtype": "bfloat16"},
    data={"pairs": {"rows": 120}, "seed_labels": 32, "prompts_per_iteration": [16], "heldout": 12},
    sft={"data": {"rows": 64}},
    noise={"lambdas": [0.0]},
    evaluation={"max_prompts": 8, "reward": "seed"},
    judge={"type": "implicit_reward", "min_margin_in_noise": 0.5},
)


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
    assert found["dropped_uncertain"] + len(pairs) + found["dropped_identical"] + found["dropped_empty"] == 16


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
