"""A run with every setting beyond the paper's on, and the rule that stops a run."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from spa_recipes.run.final import model_shown
from spa_recipes.run.rundir import RunDir
from spa_recipes.state.stagedir import Manifest
from tests.kit.cli import run_spa
from tests.kit.recipes import mini, write_recipe
from tests.kit.runs import metrics

# --- all together, through the command line ---


@pytest.fixture(scope="module")
def stopped(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with every setting on, and its folder."""
    folder = tmp_path_factory.mktemp("improved")
    shutil.copytree(finished / "runs" / "mini", folder / "runs" / "before", symlinks=True)  # to take over from
    recipe = mini(
        judge={"length_penalty": "balanced"},
        refine={"seed_replay": 0.5},
        noise={"detector": "both", "alpha": 0.5, "lambdas": [0.5, 0.0], "warmup_ratio": 0.0},
        evaluation={"reward": "seed"},
    )
    write_recipe(folder / "mini.yaml", recipe)
    done = run_spa(folder, "run", "mini.yaml")
    assert done.returncode == 0, done.stderr
    assert "replayed" in done.stdout
    assert "at equal length" in done.stdout
    return folder


def test_the_settings_act_in_a_run(stopped: Path) -> None:
    for i in (1, 2):
        judged, refined = metrics(stopped, f"judge-{i}"), metrics(stopped, f"refine-{i}")
        assert abs(judged["length_gap"]) < 1.0 if judged["length_penalty"] else judged["length_gap"] <= 0
        (path,) = (stopped / "runs" / "mini" / "stages").glob(f"*-judge-{i}-*/output/pairs.jsonl")
        pairs = len(path.read_text().splitlines())
        assert refined["replayed_pairs"] == pairs
        assert refined["steps"] == math.ceil(2 * pairs / 16)
        assert refined["flagged_pairs"] > 0


def test_the_seed_model_judges_the_win_rate(stopped: Path) -> None:
    """pi_0 prefers its own answers to pi_init's, which both were rewarded by the same two models."""
    assert metrics(stopped, "evaluate-init")["mean_reward"] < metrics(stopped, "evaluate-0")["mean_reward"]
    for i in range(3):
        assert 0.0 < metrics(stopped, f"evaluate-{i}")["win_rate_vs_init"] <= 1.0


def test_a_run_stops_at_a_decay_and_goes_on_without_the_rule(stopped: Path) -> None:
    first, second = (metrics(stopped, f"evaluate-{i}")["heldout_accuracy"] for i in (0, 1))
    if second >= first:  # make a fall of what is there: the rule reads manifests
        (manifest,) = (stopped / "runs" / "mini" / "stages").glob("*-evaluate-0-*/manifest.json")
        written = Manifest.from_json(manifest.read_text())
        fallen = replace(written, metrics={**written.metrics, "heldout_accuracy": second + 0.05})
        manifest.write_text(json.dumps(fallen.to_json()))
    ruled = run_spa(stopped, "run", "mini.yaml", "--set", "evaluation.max_judge_decay=0.0")
    assert ruled.returncode == 0, ruled.stderr
    assert "stopped before generate-2: the judge's accuracy on held-out labels fell from" in ruled.stdout
    run = RunDir(stopped / "runs" / "mini")
    assert "refine-1" in str(model_shown(run.final))
    assert "This is pi_1" in (run.final / "README.md").read_text()
    status = run_spa(stopped, "status", "mini")
    assert "stopped before generate-2" in status.stdout
    assert "every run in runs is finished" in run_spa(stopped, "resume").stderr
    onward = run_spa(stopped, "run", "mini.yaml")
    assert onward.returncode == 0
    assert "refine-2" in str(model_shown(run.final))
    assert "This is pi_2" in (run.final / "README.md").read_text()
