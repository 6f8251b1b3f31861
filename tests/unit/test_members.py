"""Several seed policies: their shares of the labels, their common reward, and what their agreement tells."""

import math
import random
import statistics
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spa_recipes.algo.members import accuracy_of_independent, accuracy_on_the_line, agreement, ensemble
from spa_recipes.data import tables
from spa_recipes.data.rows import read_jsonl, write_jsonl
from spa_recipes.data.shares import part_of
from spa_recipes.errors import DataError
from spa_recipes.plan import Plan, StageOutput
from spa_recipes.recipe.schema import Recipe
from spa_recipes.run.decay import early_stop
from spa_recipes.stages import judge, reliability
from spa_recipes.state.stagedir import Manifest
from tests.kit.plans import plan_of
from tests.kit.recipes import mini
from tests.kit.stages import context_of, judged
from tests.kit.state import FIELDS

TWO: dict[str, Any] = {"seed_training": {"members": {"count": 2}}}
REWARDS = st.lists(st.floats(-50, 50), min_size=1, max_size=6)

# --- shares of the labels


@given(rows=st.integers(1, 40), shares=st.integers(1, 6))
def test_disjoint_shares_are_all_rows_once(rows: int, shares: int) -> None:
    labels: list[Any] = [{"prompt_id": str(i)} for i in range(rows)]
    parts = [part_of(labels, m, shares, 0) for m in range(1, min(shares, rows) + 1)]
    assert sorted((row["prompt_id"] for part in parts for row in part), key=int) == [r["prompt_id"] for r in labels]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_share_without_labels_is_refused() -> None:
    with pytest.raises(DataError, match="2 seed labels leave member 3 of 3 without any"):
        part_of([{}, {}], 3, 3, 0)  # type: ignore[typeddict-item]


def test_a_bootstrap_draws_with_replacement_the_same_rows_every_time() -> None:
    labels: list[Any] = [{"prompt_id": str(i)} for i in range(400)]
    one, again, other = part_of(labels, 1, None, 7), part_of(labels, 1, None, 7), part_of(labels, 2, None, 7)
    assert one == again != other
    assert len(one) == 400
    assert len({row["prompt_id"] for row in one}) / 400 == pytest.approx(1 - math.exp(-1), abs=0.06)


# --- the reward of several


@given(values=REWARDS, penalty=st.floats(0, 3))
def test_the_common_reward_is_the_mean_minus_standard_deviations(values: list[float], penalty: float) -> None:
    mean = sum(values) / len(values)
    deviation = (sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5
    assert ensemble(values, penalty).value == pytest.approx(mean - penalty * deviation, rel=1e-9, abs=1e-9)


@given(one=st.floats(-50, 50), other=st.floats(-50, 50))
def test_of_two_with_penalty_1_it_is_the_smaller_reward(one: float, other: float) -> None:
    assert ensemble([one, other], 1.0).value == pytest.approx(min(one, other), abs=1e-9)


def test_the_error_of_the_common_reward_is_that_of_first_order() -> None:
    values, errors, penalty, step = [0.3, -1.2, 2.5], [0.2, 0.1, 0.3], 0.7, 1e-6
    slopes = []
    for m in range(3):
        up, down = ([v + sign * step * (i == m) for i, v in enumerate(values)] for sign in (1, -1))
        slopes.append((ensemble(up, penalty).value - ensemble(down, penalty).value) / (2 * step))
    slow = math.sqrt(sum((slope * error) ** 2 for slope, error in zip(slopes, errors, strict=True)))
    assert ensemble(values, penalty, errors).error == pytest.approx(slow, rel=1e-6)
    assert ensemble([1.0, 1.0], 5.0, [0.3, 0.4]).error == pytest.approx(0.25)


# --- what agreement tells


def plain_agreement(margins: list[list[float]]) -> float:
    votes = []
    for m in range(len(margins)):
        for other in range(m):
            for first, second in zip(margins[m], margins[other], strict=True):
                votes.append(0.5 if first * second == 0 else 1.0 if first * second > 0 else 0.0)
    return sum(votes) / len(votes)


def test_agreement_is_that_of_every_two_members() -> None:
    margins = [[1.0, -2.0, 0.0, 4.0], [3.0, 1.0, 1.0, 2.0], [-1.0, -1.0, 5.0, 0.0]]
    assert agreement(margins) == pytest.approx(plain_agreement(margins))
    with pytest.raises(ValueError, match="two members and a pair"):
        agreement(margins[:1])


@given(p=st.floats(0.5, 1.0))
def test_agreement_of_independent_members_gives_back_their_accuracy(p: float) -> None:
    assert accuracy_of_independent(p * p + (1 - p) ** 2) == pytest.approx(p, abs=1e-5)


@given(a=st.floats(0.51, 0.99), p=st.floats(0.51, 0.99), lower=st.floats(0.0, 0.4))
def test_as_much_agreement_as_on_labelled_pairs_is_as_much_accuracy(a: float, p: float, lower: float) -> None:
    assert accuracy_on_the_line(a, a, p) == pytest.approx(p)
    assert 0.5 <= accuracy_on_the_line(a - lower, a, p) <= p + 1e-9


def test_the_line_is_straight_on_the_scale_of_the_normal_quantile() -> None:
    phi = statistics.NormalDist()
    assert accuracy_on_the_line(phi.cdf(0.3), phi.cdf(0.8), phi.cdf(0.6)) == pytest.approx(phi.cdf(0.1))
    assert accuracy_on_the_line(1.0, 1.0, 0.9) == pytest.approx(0.9)


@pytest.mark.parametrize("a", [0.0, 0.31, 0.5])
def test_no_more_agreement_than_of_coins_is_chance(a: float) -> None:
    assert accuracy_of_independent(a) == accuracy_on_the_line(a, 0.6, 0.8) == 0.5


def simulated(draw: random.Random, accuracy: float, shared: float, pairs: int) -> tuple[list[list[float]], float]:
    """Margins of two members on pairs whose first answer is better, and how often they are right.

    A share of the noise is the same in both: errors that they have in common.
    """
    skill = statistics.NormalDist().inv_cdf(accuracy)
    margins: list[list[float]] = [[], []]
    for _ in range(pairs):
        common = draw.gauss(0, 1)
        for member in margins:
            member.append(skill + math.sqrt(shared) * common + math.sqrt(1 - shared) * draw.gauss(0, 1))
    return margins, sum(m > 0 for member in margins for m in member) / (2 * pairs)


@pytest.mark.parametrize("accuracy", [0.55, 0.6, 0.65, 0.72, 0.78])
def test_dependent_judges_are_estimated_better_by_what_they_do_on_labelled_pairs(accuracy: float) -> None:
    """The estimate for independent ones is far too high."""
    draw = random.Random(5)
    labelled, known = simulated(draw, 0.75, shared=0.5, pairs=8000)
    own, truth = simulated(draw, accuracy, shared=0.5, pairs=8000)
    plain = accuracy_of_independent(agreement(own))
    found = accuracy_on_the_line(agreement(own), agreement(labelled), known)
    assert plain > truth + 0.06
    assert abs(found - truth) < 0.6 * (plain - truth)


# --- the stages

DRAW = random.Random(3)
TEXTS = [["a", "b", "c"] for _ in range(9)]
POLICY, REFERENCE, FIRST, SECOND = ([[DRAW.uniform(-9, -3) for _ in range(3)] for _ in TEXTS] for _ in range(4))


@pytest.mark.parametrize("penalty", [0.0, 0.5, 1.0])
def test_members_label_by_their_common_reward(tmp_path: Path, penalty: float) -> None:
    rule = {"type": "implicit_reward", "beta": 0.1, "uncertainty_penalty": penalty}
    tables_ = {"member1_logps": FIRST, "member2_logps": SECOND}
    judgments, _, _ = judged(tmp_path, TEXTS, POLICY, REFERENCE, also=tables_, judge=rule, labels_by="members")
    for row, q, one, two in zip(judgments, REFERENCE, FIRST, SECOND, strict=True):
        both = [[0.1 * (m[k] - q[k]) for m in (one, two)] for k in range(3)]
        rewards = [sum(r) / 2 - penalty * abs(r[0] - r[1]) / 2 for r in both]
        assert row["rewards"] == pytest.approx(rewards, abs=1e-9)
        assert row["chosen"] == rewards.index(max(rewards))


def test_reliability_is_that_of_the_judged_pairs(tmp_path: Path) -> None:
    also = {"member1_logps": FIRST, "member2_logps": SECOND}
    judgments, _, _ = judged(tmp_path, TEXTS, POLICY, REFERENCE, also=also)
    for n, row in enumerate(judgments):
        row["gold"] = [1.0, 2.0, 1.0] if n < 8 else [1.0, 1.0, 1.0]  # the last pair is tied in truth
    write_jsonl(tmp_path / "judgments.jsonl", judgments)
    inputs = {name: tmp_path / f"{name}.parquet" for name in ("completions", "reference_logps", *also)}
    known = [[0.1, -0.2, 0.3, 0.4, 0.0, 2.0], [0.1, -0.3, -0.2, 0.4, 1.0, 1.0]]  # held-out pairs: right where positive
    for m, margins in enumerate(known, 1):
        inputs[f"member{m}_heldout"] = tmp_path / f"heldout{m}.jsonl"
        write_jsonl(inputs[f"member{m}_heldout"], [{"prompt_id": "p", "margin": margin} for margin in margins])
    context = context_of(tmp_path / "told", "reliability", inputs={**inputs, "judgments": tmp_path / "judgments.jsonl"})
    result = reliability.run(context)
    slow = [
        [(m[i][row["chosen"]] - REFERENCE[i][row["chosen"]]) - (m[i][row["rejected"]] - REFERENCE[i][row["rejected"]])
         for m in (FIRST, SECOND)]
        for i, row in enumerate(judgments)
    ]  # fmt: skip
    written: list[dict[str, Any]] = read_jsonl(context.draft / "margins.jsonl")
    assert [row["margins"] for row in written] == [pytest.approx(margins, abs=1e-9) for margins in slow]
    agreed = sum(one * two > 0 for one, two in slow) / len(slow)
    assert result.metrics["member_agreement"] == pytest.approx(agreed)
    assert result.metrics["heldout_agreement"] == pytest.approx(4.5 / 6)
    phi = statistics.NormalDist()
    on_line = phi.inv_cdf(8.5 / 12) + phi.inv_cdf(agreed) - phi.inv_cdf(4.5 / 6) if agreed > 0.5 else 0.0
    assert result.metrics["reliability"] == pytest.approx(max(0.5, phi.cdf(on_line)))
    gaps = [row["gold"][row["chosen"]] - row["gold"][row["rejected"]] for row in judgments]
    right = [m * gap > 0 for margins, gap in zip(slow, gaps, strict=True) for m in margins if gap]
    assert len(right) < 2 * len(judgments)
    assert result.metrics["member_accuracy_vs_gold"] == pytest.approx(sum(right) / len(right))


def test_in_half_precision_members_come_with_their_errors(tmp_path: Path) -> None:
    judged(tmp_path, TEXTS, POLICY, REFERENCE)  # writes the completions
    completions = tables.read_table(tmp_path / "completions.parquet", tables.COMPLETIONS)
    rows = len(completions)
    for name, value, error in (("member1_log_ratios", 1.0, 0.3), ("member2_log_ratios", 2.0, 0.4)):
        table = tables.LogRatioTable([value] * rows, [error] * rows, {})
        tables.write_log_ratios(tmp_path / f"{name}.parquet", completions, table)
    names = ("completions", "member1_log_ratios", "member2_log_ratios")
    settings = {"labels_by": "members", "judge": {"uncertainty_penalty": 0.0}}
    inputs = {name: tmp_path / f"{name}.parquet" for name in names} | {"prompts": tmp_path / "prompts.jsonl"}
    context = context_of(tmp_path / "both", "judge", settings=settings, inputs=inputs)
    for _, answers in judge._Given(context).prompts():
        assert [a.log_ratio for a in answers] == [1.5] * 3
        assert [a.error for a in answers] == pytest.approx([0.25] * 3)


# --- the plan


def keys(plan: Plan) -> dict[str, str]:
    return {stage.id: stage.key for stage in plan.stages}


def test_one_member_is_pi_0_byte_for_byte() -> None:
    assert keys(plan_of(seed_training={"members": {"count": 1, "share": "disjoint"}})) == keys(plan_of())


def test_reliability_costs_the_seed_trainings_and_a_pass_per_member_and_iteration() -> None:
    """And one over the held-out pairs. No key moves: a finished run is measured without a policy trained again."""
    method, plan = keys(plan_of()), keys(plan_of(**TWO))
    added = [f"score-{i}-member{m}" for i in (1, 2) for m in (1, 2)] + ["reliability-1", "reliability-2"]
    added += ["heldout-member1", "heldout-member2"]
    assert plan.keys() - method.keys() == {"seed-member1", "seed-member2", *added}
    assert {name: plan[name] for name in method} == method
    shown = plan_of(**TWO)
    assert shown.stage("seed-member1").role.startswith("pi_0^(1): DPO on share 1 of 2 of the seed labels, from pi_init")
    assert [shown.stage(f"seed-member{m}").rows for m in (1, 2)] == [30, 30]
    assert shown.stage("score-2-member2").inputs["model"] == StageOutput("seed-member2", "model")
    assert shown.newest_model(keys(shown).keys() - {"refine-1", "refine-2"}) == shown.stage("seed")


def test_members_that_judge_are_no_other_judge_of_the_same_key() -> None:
    """A key holds no `judge.policy`."""
    ensemble_plan = keys(plan_of(**TWO, judge={"policy": "members"}))
    one_judge = keys(plan_of(**TWO))
    shared = [name for name in ensemble_plan if ensemble_plan[name] == one_judge.get(name)]
    assert {"seed", "seed-member1", "generate-1", "score-1-reference", "score-1-member2"} <= {*shared}
    assert not {"judge-1", "refine-1", "judge-2", "refine-2"} & {*shared}
    assert plan_of(**TWO, judge={"policy": "members"}).stage("judge-1").role == (
        "pi_0^(1) and pi_0^(2) label the answers of pi_0"
    )


def test_members_share_by_key() -> None:
    """A disjoint share depends on their number, a bootstrap does not."""
    boots = [
        keys(plan_of(seed_training={"members": {"count": n, "share": "bootstrap"}}, judge={"policy": "members"}))
        for n in (2, 3)
    ]
    assert boots[0]["seed-member2"] == boots[1]["seed-member2"]
    assert not any(name.startswith("reliability") for name in boots[0])
    three = keys(plan_of(seed_training={"members": {"count": 3}}))
    assert three["seed-member1"] not in keys(plan_of(**TWO)).values()
    assert len({*three.values()}) == len(three)


def test_in_half_precision_and_with_qlora_members_are_read_as_policies_are() -> None:
    plan = plan_of(**TWO, model={"dtype": "bfloat16"})
    stage = plan.stage("log-ratios-2-member1")
    assert (stage.inputs["policy"], stage.inputs["reference"]) == (
        StageOutput("seed-member1", "model"), StageOutput("sft", "model"),
    )  # fmt: skip
    assert plan.stage("refine-2").inputs["log_ratios"] == StageOutput("log-ratios-2", "log_ratios.parquet")
    adapters = plan_of(**TWO, model={"dtype": "bfloat16", "lora": {"load_in_4bit": True}})
    assert adapters.stage("log-ratios-2-member1").inputs["adapter"] == StageOutput("seed-member1", "adapter")


# --- the stop rule


def told(values: list[float], **more: float) -> dict[str, Manifest]:
    metrics: dict[str, dict[str, Any]] = {f"reliability-{i}": {"reliability": v} for i, v in enumerate(values, 1)}
    metrics |= {name: {"heldout_accuracy": value} for name, value in more.items()}
    return {name: Manifest(**{**FIELDS, "id": name, "metrics": m}, files={}) for name, m in metrics.items()}


def stop_of(found: dict[str, Manifest], **rules: Any) -> str | None:
    stop = early_stop(Recipe.model_validate(mini(**TWO, evaluation=rules)), found)
    return None if stop is None else str(stop)


def test_labels_of_an_unreliable_judge_train_nothing() -> None:
    assert stop_of(told([0.7, 0.58]), min_judge_reliability=0.6) == (
        "stopped before refine-2: the judge's reliability by the agreement of its members is 58.0%, below "
        "evaluation.min_judge_reliability (60.0%); lower it to continue"
    )
    assert "no better than chance, below" in (stop_of(told([0.5]), min_judge_reliability=0.6) or "")
    assert stop_of(told([0.7, 0.6]), min_judge_reliability=0.6) is None
    assert stop_of(told([0.5, 0.5])) is None


def test_of_two_rules_the_one_that_is_met_first_stops() -> None:
    both: dict[str, Any] = {"min_judge_reliability": 0.6, "max_judge_decay": 0.01}
    falling = {"evaluate-0": 0.8, "evaluate-1": 0.7}
    assert (stop_of(told([0.55], **falling), **both) or "").startswith("stopped before refine-1")
    assert (stop_of(told([0.7, 0.55], **falling), **both) or "").startswith("stopped before generate-2")


def test_a_training_waits_for_the_reliability_that_may_forbid_it() -> None:
    plan = plan_of(**TWO, evaluation={"min_judge_reliability": 0.6})
    assert {s.id: s.after for s in plan.stages if s.after} == {
        "refine-1": ("reliability-1",), "refine-2": ("reliability-2",),
    }  # fmt: skip
    assert keys(plan) == keys(plan_of(**TWO))
