"""Runs with the method's variants on, through the command line: what they promise is in the files that they leave."""

import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from spa_recipes.data.rows import read_jsonl
from spa_recipes.run.final import model_shown
from spa_recipes.run.rundir import RunDir
from tests.kit.cli import run_spa
from tests.kit.recipes import mini, write_recipe
from tests.kit.runs import metrics
from tests.kit.training import weights

KAPPA = 0.5


@pytest.fixture(scope="module")
def anchored(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a mixed reference, a share of the pairs, another loss and an extrapolated end."""
    folder = tmp_path_factory.mktemp("variants")
    shutil.copytree(finished / "runs" / "mini", folder / "runs" / "before", symlinks=True)  # to take over from
    recipe = mini(
        judge={"keep": 0.5},
        refine={"reference_mix": KAPPA, "sft_weight": 0.1, "divergence": "reverse_kl", "loss": "distill"},
        noise={"lambdas": [0.0, 0.0]},
        final={"extrapolate": 0.5},
    )
    write_recipe(folder / "mini.yaml", recipe)
    done = run_spa(folder, "run", "mini.yaml")
    assert done.returncode == 0, done.stderr
    return folder


def output(folder: Path, stage: str) -> Path:
    (path,) = (folder / "runs" / "mini" / "stages").glob(f"*-{stage}-*/output")
    return path


def test_the_first_margins_are_kappa_times_the_judges(anchored: Path) -> None:
    """Both betas are 0.1. The judge subtracted log-probs of sampling; the training computes its own."""
    for i in (1, 2):
        judged = read_jsonl(output(anchored, f"judge-{i}") / "judgments.jsonl")
        trace: list[dict[str, Any]] = read_jsonl(output(anchored, f"refine-{i}") / "model" / "pairs_trace.jsonl")
        first = [row for row in trace if row["step"] == 1]
        assert first
        for row in first:
            assert row["margin"] == pytest.approx(KAPPA * judged[row["row"]]["margin"], abs=1e-4)
        assert max(row["margin"] for row in first) > 0.01


def test_half_of_the_pairs_is_kept(anchored: Path) -> None:
    for i in (1, 2):
        kept = len(read_jsonl(output(anchored, f"judge-{i}") / "pairs.jsonl"))
        assert abs(metrics(anchored, f"judge-{i}")["dropped_small_margin"] - kept) <= 1
        assert metrics(anchored, f"refine-{i}")["steps"] == -(-kept // 16)


def test_the_final_model_is_the_extrapolated_one(anchored: Path) -> None:
    run = RunDir(anchored / "runs" / "mini")
    assert "extrapolate" in str(model_shown(run.final))
    init, last, final = (weights(output(anchored, stage) / "model") for stage in ("sft", "refine-2", "extrapolate"))
    for name, tensor in final.items():
        assert (tensor - (last[name] + 0.5 * (last[name] - init[name]))).abs().max() < 1e-6
    card = (run.final / "README.md").read_text()
    assert "This is pi_2 with its weights W extrapolated, W + 0.5*(W - W_init)" in card
    assert "pi_extrapolated" in card
    assert metrics(anchored, "evaluate-extrapolated")["win_rate_vs_init"] > 0


def test_two_models_judge_with_the_decoupled_detection(anchored: Path) -> None:
    recipe = mini(
        judge={"policy": "mean"}, refine={"loss": "ipo", "divergence": "chi_squared"}, evaluation={"enabled": False}
    )
    write_recipe(anchored / "mean.yaml", {**recipe, "name": "mean"})
    done = run_spa(anchored, "run", "mean.yaml", "--until", "refine-2")
    assert done.returncode == 0, done.stderr
    stages = anchored / "runs" / "mean" / "stages"
    (judged,), (reference,), (seed,) = (
        [*stages.glob(f"*-{stage}-*/output")] for stage in ("judge-2", "score-2-reference", "score-2-seed")
    )
    of_reference, of_seed = (
        {(row["item"], row["sample"]): row["logp"] for row in pq.read_table(path / "logps.parquet").to_pylist()}
        for path in (reference, seed)
    )
    rows = read_jsonl(judged / "judgments.jsonl")
    assert len(rows) > 20
    for row in rows:
        for k, (reward, own) in enumerate(zip(row["rewards"], row["policy_logps"], strict=True)):
            place = (row["item"], k)
            both = [0.1 * (logp - of_reference[place]) for logp in (own, of_seed[place])]
            assert reward == pytest.approx(sum(both) / 2, abs=1e-6)
