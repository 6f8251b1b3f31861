"""Runs with the losses and judges that change most of the chain, through the command line, against plain loops."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from spa_recipes.data.rows import read_jsonl
from spa_recipes.data.tables import COMPLETIONS, read_table, read_token_logps
from tests.kit import reference_math as plain
from tests.kit.cli import run_spa
from tests.kit.recipes import merged, mini, write_recipe
from tests.kit.runs import metrics, output, stage_dir
from tests.kit.training import same_weights

pytestmark = pytest.mark.slow

BETA = 0.1
ONE_STEP: dict[str, Any] = {"data": {"prompts_per_iteration": [16]}, "evaluation": {"enabled": False}}
Run = Callable[..., Path]


@pytest.fixture(scope="module")
def run(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs the miniature with changes beside its finished run; gives the folder of both."""
    folder = tmp_path_factory.mktemp("variants")
    shutil.copytree(finished / "runs" / "mini", folder / "runs" / "mini", symlinks=True)

    def run_variant(name: str, until: str, *several: dict[str, Any]) -> Path:
        recipe = mini(name=name)
        for changes in several:
            recipe = merged(recipe, changes)
        write_recipe(folder / f"{name}.yaml", recipe)
        done = run_spa(folder, "run", f"{name}.yaml", "--until", until)
        assert done.returncode == 0, done.stderr
        return folder

    return run_variant


def judgments(home: Path, stage: str, name: str) -> list[dict[str, Any]]:
    return read_jsonl(output(home, stage, "judgments.jsonl", name))


def logps(home: Path, stage: str, name: str) -> dict[tuple[int, int], float]:
    rows = pq.read_table(output(home, stage, "logps.parquet", name)).to_pylist()
    return {(row["item"], row["sample"]): row["logp"] for row in rows}


def test_sppo_learns_from_all_answers(run: Run) -> None:
    """Before the first step all log-ratios are 0, so that the loss is known from the judge's rewards alone."""
    refine = {"loss": "sppo", "warmup_ratio": 0.0}  # the only step has the whole learning rate
    changes = {"sampling": {"n": 3}, "refine": refine, "noise": {"enabled": False}}
    home = run("sppo", "refine-1", ONE_STEP, changes)
    assert metrics(home, "refine-1", "sppo")["steps"] == 1
    rows = judgments(home, "judge-1", "sppo")
    texts = {
        (row["item"], row["sample"]): row["text"].strip()
        for row in pq.read_table(output(home, "generate-1", "completions.parquet", "sppo")).to_pylist()
    }
    slow = 0.0
    for row in rows:
        rewards = [reward for k, reward in enumerate(row["rewards"]) if texts[row["item"], k]]
        zeros = [0.0] * len(rewards)
        slow += plain.sppo_loss(zeros, zeros, plain.win_probabilities(rewards), eta=1 / BETA) / len(rows)
    assert any(len(row["rewards"]) == 3 for row in rows)
    assert metrics(home, "refine-1", "sppo")["train_loss"] == pytest.approx(slow, rel=1e-3, abs=1e-4)
    before = stage_dir(home, "seed") / "output" / "model"
    assert not same_weights(before, stage_dir(home, "refine-1", "sppo") / "output" / "model")


def test_token_credit_reads_the_log_probs_that_scoring_kept(run: Run) -> None:
    two_steps = {"refine": {"num_train_epochs": 2}}
    models = {}
    for name, a in (("none", None), ("zero", 0.0), ("half", 0.5)):
        credit = {} if a is None else {"refine": {"token_credit": {"type": "tgdpo", "a": a}}}
        home = run(f"credit-{name}", "refine-1", ONE_STEP, two_steps, credit)
        models[name] = stage_dir(home, "refine-1", f"credit-{name}") / "output" / "model"
    assert same_weights(models["zero"], models["none"], tolerance=1e-5)
    assert not same_weights(models["half"], models["none"], tolerance=1e-5)
    table = read_table(output(home, "generate-1", "completions.parquet", "credit-half"), COMPLETIONS)
    kept = read_token_logps(output(home, "score-1-reference", "logps.parquet", "credit-half"), table)
    sums = logps(home, "score-1-reference", "credit-none")
    for row, of_tokens in zip(table.select(["item", "sample", "response_ids"]).to_pylist(), kept, strict=True):
        assert len(of_tokens) == len(row["response_ids"])
        assert sum(of_tokens) == pytest.approx(sums[row["item"], row["sample"]], abs=1e-4)


def test_members_label_by_the_mean_of_their_rewards(run: Run) -> None:
    changes = {"seed_training": {"members": {"count": 2}}, "judge": {"policy": "members", "uncertainty_penalty": 1.0}}
    home = run("members", "refine-1", changes, {"evaluation": {"enabled": False}})
    reference, one, two = (logps(home, f"score-1-{who}", "members") for who in ("reference", "member1", "member2"))
    rows = judgments(home, "judge-1", "members")
    assert len(rows) > 20
    for row in rows:
        for k, reward in enumerate(row["rewards"]):
            place = (row["item"], k)
            smaller = min(member[place] for member in (one, two)) - reference[place]
            assert reward == pytest.approx(BETA * smaller, abs=1e-6)  # mean minus one standard deviation of two
        assert row["rewards"][row["chosen"]] >= row["rewards"][row["rejected"]]
    own = stage_dir(home, "refine-1", "members") / "output" / "model"
    assert not same_weights(stage_dir(home, "refine-1") / "output" / "model", own)


def test_labels_are_weighed_by_the_consistency_of_two_judges(run: Run) -> None:
    home = run("cream", "refine-2", {"judge": {"consistency": True}})
    answers = pq.read_table(output(home, "generate-2", "completions.parquet", "cream")).to_pylist()
    now = {(row["item"], row["sample"]): sum(row["logps"]) for row in answers}
    reference, before = (logps(home, f"score-2-{who}", "cream") for who in ("reference", "earlier"))
    rows, taus = judgments(home, "judge-2", "cream"), []
    for row in rows:
        gaps = [
            (logps[row["item"], 0] - reference[row["item"], 0]) - (logps[row["item"], 1] - reference[row["item"], 1])
            for logps in (before, now)
        ]
        taus.append(1.0 if gaps[0] * gaps[1] > 0 else -1.0)
    assert [row["rank_agreement"] for row in rows] == taus
    assert metrics(home, "judge-2", "cream")["consistency"] == pytest.approx((1 + sum(taus) / len(taus)) / 2)
    own, method = (stage_dir(home, "refine-2", name) / "output" / "model" for name in ("cream", "mini"))
    assert not same_weights(own, method)
