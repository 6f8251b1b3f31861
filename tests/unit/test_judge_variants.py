"""Which model judges, against what, and which pairs are kept: the settings of the judge beyond the paper."""

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spa_recipes.algo.judgment import largest_margins
from spa_recipes.data import tables
from spa_recipes.plan import External, StageOutput
from spa_recipes.stages import judge
from tests.kit.plans import plan_of
from tests.kit.stages import context_of, judged

MODEL = "model"

# --- the share that is kept


@given(margins=st.lists(st.floats(-5, 5), min_size=1, max_size=30), keep=st.floats(0.01, 1.0))
def test_the_largest_margins_are_kept_in_their_order(margins: list[float], keep: float) -> None:
    kept = largest_margins(margins, keep)
    assert kept == sorted(kept)
    assert len(kept) == max(1, round(keep * len(margins)))
    left = [abs(margins[i]) for i in range(len(margins)) if i not in kept]
    assert not left or min(abs(margins[i]) for i in kept) >= max(left)


def test_keeping_all_is_the_identity() -> None:
    assert largest_margins([0.0, -3.0, 1.0], 1.0) == [0, 1, 2]


# --- the stage

DRAW = random.Random(3)
TEXTS = [["a", "b"] for _ in range(9)]
POLICY, REFERENCE, OTHER = ([[DRAW.uniform(-9, -3) for _ in range(2)] for _ in TEXTS] for _ in range(3))


def plain_margins(judges: list[list[float]], reference: list[list[float]]) -> list[float]:
    """|r_1 - r_2| by beta 0.1; the stage's tables are in float32."""
    rewards = [[0.1 * (p - q) for p, q in zip(*pair, strict=True)] for pair in zip(judges, reference, strict=True)]
    return [abs(first - second) for first, second in rewards]


def test_a_share_of_the_pairs_is_kept(tmp_path: Path) -> None:
    implicit = {"type": "implicit_reward", "beta": 0.1}
    everything, _, before = judged(tmp_path / "all", TEXTS, POLICY, REFERENCE, judge={**implicit, "keep": 1.0})
    judgments, pairs, metrics = judged(tmp_path / "some", TEXTS, POLICY, REFERENCE, judge={**implicit, "keep": 0.4})
    slow = sorted(plain_margins(POLICY, REFERENCE))[-4:]  # 0.4 of 9 is 3.6
    assert sorted(row["margin"] for row in judgments) == pytest.approx(slow, abs=1e-6)
    assert [row["prompt_id"] for row in pairs] == [row["prompt_id"] for row in judgments]
    assert [row for row in everything if row["margin"] >= min(slow) - 1e-9] == judgments
    assert metrics["dropped_small_margin"] == 5
    assert "dropped_small_margin" not in before


def test_another_model_judges(tmp_path: Path) -> None:
    judgments, _, _ = judged(tmp_path, TEXTS, POLICY, REFERENCE, also={"judging_logps": OTHER})
    assert [row["margin"] for row in judgments] == pytest.approx(plain_margins(OTHER, REFERENCE), abs=1e-6)
    # The training's reference stays pi_{i-1}.
    assert [row["policy_logps"] for row in judgments] == [pytest.approx(logps, abs=1e-5) for logps in POLICY]


def test_two_models_judge_by_the_mean_of_their_rewards(tmp_path: Path) -> None:
    judgments, _, _ = judged(tmp_path, TEXTS, POLICY, REFERENCE, also={"seed_logps": OTHER})
    rewards = [
        [(0.1 * (p - q) + 0.1 * (o - q)) / 2 for p, o, q in zip(*answers, strict=True)]
        for answers in zip(POLICY, OTHER, REFERENCE, strict=True)
    ]
    assert [row["rewards"] for row in judgments] == [pytest.approx(values, abs=1e-6) for values in rewards]


def test_two_equal_judges_are_one(tmp_path: Path) -> None:
    one, _, _ = judged(tmp_path / "1", TEXTS, POLICY, REFERENCE)
    two, _, _ = judged(tmp_path / "2", TEXTS, POLICY, REFERENCE, also={"seed_logps": POLICY})
    assert [row["margin"] for row in two] == pytest.approx([row["margin"] for row in one])
    assert [row["chosen"] for row in two] == [row["chosen"] for row in one]


def test_errors_of_two_log_ratios_are_independent(tmp_path: Path) -> None:
    judged(tmp_path, TEXTS, POLICY, REFERENCE)  # writes the completions
    completions = tables.read_table(tmp_path / "completions.parquet", tables.COMPLETIONS)
    rows = len(completions)
    for name, value, error in (("log_ratios", 1.0, 0.3), ("seed_log_ratios", 2.0, 0.4)):
        table = tables.LogRatioTable([value] * rows, [error] * rows, {})
        tables.write_log_ratios(tmp_path / f"{name}.parquet", completions, table)
    names = ("completions", "log_ratios", "seed_log_ratios")
    inputs = {name: tmp_path / f"{name}.parquet" for name in names} | {"prompts": tmp_path / "prompts.jsonl"}
    for _, answers in judge._Given(context_of(tmp_path / "both", "judge", inputs=inputs)).prompts():
        assert [a.log_ratio for a in answers] == [1.5] * 2
        assert [a.error for a in answers] == pytest.approx([0.25] * 2)


# --- the plan

SEED = StageOutput("seed", MODEL)


def test_a_seed_policy_judges_from_iteration_2_on() -> None:
    """In iteration 1 it is the method's judge, down to the keys."""
    method, plan = plan_of(), plan_of(judge={"policy": "seed"})
    assert plan.stage("refine-1").key == method.stage("refine-1").key
    labelling = plan.stage("judge-2")
    assert labelling.role == "pi_0 labels the answers of pi_1"
    assert labelling.inputs["judging_logps"] == StageOutput("score-2-judging", "logps.parquet")
    assert plan.stage("score-2-judging").inputs["model"] == SEED
    assert plan.stage("score-2-reference").inputs["model"] == StageOutput("sft", MODEL)
    assert plan.stage("refine-2").inputs["reference"] == StageOutput("refine-1", MODEL)


def test_the_mean_of_both_costs_one_pass_per_later_iteration() -> None:
    method, plan = plan_of(), plan_of(judge={"policy": "mean"})
    assert {s.id for s in plan.stages} - {s.id for s in method.stages} == {"score-2-seed"}
    assert plan.stage("judge-2").role == "pi_1 and pi_0 label the answers of pi_1"
    assert plan.stage("judge-2").inputs["seed_logps"] == StageOutput("score-2-seed", "logps.parquet")
    assert plan.stage("judge-2").key != plan_of(judge={"policy": "seed"}).stage("judge-2").key


def test_a_model_from_outside_judges(tmp_path: Path) -> None:
    plan = plan_of(judge={"policy": str(tmp_path)})
    for i in (1, 2):
        model = plan.stage(f"score-{i}-judging").inputs["model"]
        assert isinstance(model, External)
        assert model.location == str(tmp_path)


def test_the_previous_reference_is_two_policies_back() -> None:
    method, plan = plan_of(), plan_of(judge={"reference": "previous"})
    assert plan.stage("refine-1").key == method.stage("refine-1").key
    assert plan.stage("score-2-reference").inputs["model"] == SEED
    assert plan.stage("refine-2").inputs["reference"] == StageOutput("refine-1", MODEL)
    three = plan_of(judge={"reference": "previous"}, data={"prompts_per_iteration": [8, 8, 8]})
    assert three.stage("score-3-reference").inputs["model"] == StageOutput("refine-1", MODEL)


HALF: dict[str, Any] = {"model": {"dtype": "bfloat16"}}


def test_in_half_precision_log_ratios_are_those_of_the_models_that_judge() -> None:
    seed, mean = plan_of(**HALF, judge={"policy": "seed"}), plan_of(**HALF, judge={"policy": "mean"})
    assert seed.stage("log-ratios-2").inputs["policy"] == SEED
    assert "log-ratios-2-seed" not in {stage.id for stage in seed.stages}
    assert mean.stage("log-ratios-2").inputs["policy"] == StageOutput("refine-1", MODEL)
    assert mean.stage("log-ratios-2-seed").inputs["policy"] == SEED
    assert {"log_ratios", "seed_log_ratios"} <= mean.stage("judge-2").inputs.keys()
    previous = plan_of(**HALF, judge={"reference": "previous"})
    assert previous.stage("log-ratios-2").inputs["reference"] == SEED


def test_a_plan_counts_the_pairs_that_are_kept() -> None:
    plan = plan_of(judge={"keep": 0.25})
    assert plan.stage("judge-1").role.endswith("; the 25% with the largest margins are kept")
    assert [plan.stage(name).rows for name in ("generate-1", "judge-1", "refine-1")] == [64, 8, 8]


def test_defaults_move_no_key() -> None:
    spelled = plan_of(judge={"type": "implicit_reward", "policy": "previous", "keep": 1.0})
    assert [stage.key for stage in spelled.stages] == [stage.key for stage in plan_of().stages]
