"""Labels that are weighed by how far two judges rank the same answers alike."""

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spa_recipes.algo.consistency import consistency, kendall_tau
from spa_recipes.plan import Plan, StageOutput
from spa_recipes.recipe.schema import RefineTraining
from spa_recipes.stages import refine
from tests.kit.plans import plan_of
from tests.kit.stages import judged

RANKS = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=2, max_size=7)


def plain_tau(one: list[float], other: list[float]) -> float:
    alike = against = ranked = 0
    for i in range(len(one)):
        for j in range(i):
            product = (one[i] - one[j]) * (other[i] - other[j])
            alike, against = alike + (product > 0), against + (product < 0)
            ranked += one[i] != one[j] or other[i] != other[j]
    return (alike - against) / ranked if ranked else 0.0


@given(pairs=RANKS)
def test_tau_is_that_of_plain_loops(pairs: list[tuple[int, int]]) -> None:
    one, other = ([float(pair[k]) for pair in pairs] for k in (0, 1))
    assert kendall_tau(one, other) == pytest.approx(plain_tau(one, other))
    assert kendall_tau(one, other) == kendall_tau(other, one)
    assert kendall_tau(one, [-value for value in other]) == pytest.approx(-kendall_tau(one, other))


@given(values=st.lists(st.floats(-9, 9), min_size=2, max_size=6, unique=True))
def test_a_judge_agrees_with_itself_and_not_with_its_opposite(values: list[float]) -> None:
    assert kendall_tau(values, values) == 1.0
    assert kendall_tau(values, [-value for value in values]) == -1.0


def test_the_weight_of_a_label() -> None:
    assert consistency([1.0, 1.0]) == 1.0
    assert consistency([1.0, -1.0]) == 0.5
    assert consistency([-1.0]) == 0.0
    with pytest.raises(ValueError, match="no rankings"):
        consistency([])


# --- the stages

DRAW = random.Random(4)
TEXTS = [["a", "b", "", "d"]] + [["a", "b", "c", "d"] for _ in range(8)]
POLICY, REFERENCE, EARLIER = ([[DRAW.uniform(-9, -3) for _ in range(4)] for _ in TEXTS] for _ in range(3))
RULE: dict[str, Any] = {"type": "implicit_reward", "beta": 0.1, "consistency": True}


def test_the_judge_before_ranks_the_answers_that_can_make_a_pair(tmp_path: Path) -> None:
    rows, _, metrics = judged(tmp_path, TEXTS, POLICY, REFERENCE, also={"earlier_logps": EARLIER}, judge=RULE)
    taus = []
    for texts, p, q, e in zip(TEXTS, POLICY, REFERENCE, EARLIER, strict=True):
        kept = [k for k, text in enumerate(texts) if text]
        taus.append(plain_tau([e[k] - q[k] for k in kept], [p[k] - q[k] for k in kept]))
    assert [row["rank_agreement"] for row in rows] == pytest.approx(taus)
    assert metrics["consistency"] == pytest.approx((1 + sum(taus) / len(taus)) / 2)
    loss = refine._loss(RefineTraining(), rows)  # type: ignore[arg-type]
    assert loss.consistency == metrics["consistency"]


def test_the_same_judge_twice_is_the_method(tmp_path: Path) -> None:
    rows, _, metrics = judged(tmp_path, TEXTS, POLICY, REFERENCE, also={"earlier_logps": POLICY}, judge=RULE)
    assert metrics["consistency"] == 1.0
    assert refine._loss(RefineTraining(), rows).consistency == 1.0  # type: ignore[arg-type]


# --- the plan


def keys(plan: Plan) -> dict[str, str]:
    return {stage.id: stage.key for stage in plan.stages}


def test_consistency_costs_a_pass_from_the_second_iteration_on() -> None:
    method, plan = plan_of(), plan_of(judge={"consistency": True})
    own, theirs = keys(plan), keys(method)
    assert own.keys() - theirs.keys() == {"score-2-earlier"}
    assert plan.stage("score-2-earlier").inputs["model"] == StageOutput("seed", "model")
    changed = [name for name in theirs if own[name] != theirs[name]]
    assert changed == ["judge-2", "refine-2", "evaluate-2"]
    assert plan.stage("judge-2").role == (
        "pi_1 labels its own answers; pi_0 ranks them, too, for the consistency of the labels"
    )
    assert plan.stage("refine-2").role.endswith(", labels weighed by their consistency")
    three = plan_of(judge={"consistency": True}, data={"prompts_per_iteration": [8, 8, 8]})
    assert three.stage("score-3-earlier").inputs["model"] == StageOutput("refine-1", "model")


def test_in_half_precision_the_judge_before_has_log_ratios_with_the_same_reference() -> None:
    plan = plan_of(judge={"consistency": True}, model={"dtype": "bfloat16"})
    inputs = plan.stage("log-ratios-2-earlier").inputs
    assert (inputs["policy"], inputs["reference"]) == (StageOutput("seed", "model"), StageOutput("sft", "model"))
    assert [*itertools.islice(plan.stage("judge-2").inputs, 2, None)] == ["log_ratios", "earlier_log_ratios"]
