"""What goes beyond the paper, each behind a setting: judge's detector, seed replay, length penalty, stop rule."""

import itertools
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spa_recipes.algo.judgment import balancing_length_penalty, select_pair
from spa_recipes.algo.refine import detection_margin
from spa_recipes.plan import Plan, compile_plan
from spa_recipes.recipe.schema import FixedThreshold, Recipe
from spa_recipes.run.decay import judge_decay
from spa_recipes.state.digests import DigestMemo
from spa_recipes.state.stagedir import Manifest
from spa_recipes.training.order import EpochOrder
from spa_recipes.training.run import train_preference
from tests.kit.recipes import mini
from tests.kit.state import FIELDS
from tests.kit.training import REFINEMENT, make_env, make_pairs, preference, same_weights, trace

# --- (a) whose margin the detector reads ---


def test_margins_of_the_detectors() -> None:
    policy_B, judge_B = torch.tensor([0.3, -0.2], requires_grad=True), torch.tensor([1.0, 0.1])
    assert detection_margin(policy_B, judge_B, "policy").tolist() == policy_B.tolist()
    assert detection_margin(policy_B, judge_B, "judge").tolist() == judge_B.tolist()
    both = detection_margin(policy_B, judge_B, "both")
    assert both.tolist() == pytest.approx([1.3, -0.1])
    assert not both.requires_grad


def test_both_margins_added_are_the_odds_multiplied() -> None:
    p, q = 0.7, 0.2
    first_B, second_B = (torch.tensor([math.log(x / (1 - x))], dtype=torch.float64) for x in (p, q))
    odds = p / (1 - p) * q / (1 - q)
    assert torch.sigmoid(detection_margin(first_B, second_B, "both")).item() == pytest.approx(odds / (1 + odds))


@pytest.mark.parametrize("cut", [8, 2])
def test_the_judges_detector_flags_by_its_margins_alone(policy: Path, tmp_path: Path, cut: int) -> None:
    rows = make_pairs(24)
    margins = [random.Random(n).uniform(0, 4) for n in range(24)]
    tau = 0.8
    refinement = replace(
        REFINEMENT, detector="judge", judge_margins=margins, threshold=FixedThreshold(type="fixed", tau=tau)
    )
    train_preference(
        policy,
        rows,
        preference(per_device_train_batch_size=cut),
        make_env(policy, tmp_path),
        reference_path=None,
        refinement=refinement,
    )
    seen = trace(tmp_path)
    assert sorted(line["row"] for line in seen) == list(range(24))
    for line in seen:
        assert line["p_detect"] == pytest.approx(1 / (1 + math.exp(-margins[line["row"]])), rel=1e-6)
        warm = line["step"] > 1  # a fifth of three steps, rounded up
        assert line["flagged"] == int(warm and line["p_detect"] < tau)
    assert 0 < sum(line["flagged"] for line in seen) < 24


# --- (b) seed pairs in every batch ---


@settings(max_examples=80, deadline=None)
@given(
    judged=st.integers(1, 200), replayed=st.integers(1, 200), size=st.sampled_from([4, 8, 32]), epoch=st.integers(0, 3)
)
def test_every_batch_holds_its_share(judged: int, replayed: int, size: int, epoch: int) -> None:
    count = judged + replayed
    order = list(
        EpochOrder([1] * count, size, 1, seed=3, group_by_length=False, epoch=lambda: epoch, replayed=replayed)
    )
    assert sorted(order) == list(range(count))
    for start in range(0, count, size):
        batch = order[start : start + size]
        share = len(batch) * replayed / count
        assert abs(sum(row >= judged for row in batch) - share) < 2


def test_replayed_rows_train_and_the_detector_does_not_see_them(policy: Path, tmp_path: Path) -> None:
    rows, seeds = make_pairs(16), make_pairs(16, seed=5)
    every = FixedThreshold(type="fixed", tau=0.999)
    refinement = replace(REFINEMENT, threshold=every, warmup_ratio=0.0, alpha=0.5)

    def train(name: str, extra: list[dict[str, Any]], replayed: int) -> Path:
        folder = tmp_path / name
        result = train_preference(
            policy,
            [*rows, *extra],
            preference(),
            make_env(policy, folder),
            reference_path=None,
            refinement=refinement,
            replayed=replayed,
        )
        assert result.steps == 4 if extra else 2
        return folder

    mixed = train("mixed", seeds, 16)
    assert sorted(line["row"] for line in trace(mixed)) == list(range(16))
    assert all(line["flagged"] for line in trace(mixed) if line["p_detect"] < 0.999)
    # Other replayed labels, another model; and alpha 0.5 makes a flagged pair carry no preference at all.
    swapped = [
        {**row, "chosen_ids": row["rejected_ids"], "rejected_ids": row["chosen_ids"]}
        | {"ref_chosen_logps": row["ref_rejected_logps"], "ref_rejected_logps": row["ref_chosen_logps"]}
        for row in seeds
    ]
    assert not same_weights(mixed / "out", train("swapped", swapped, 16) / "out", tolerance=1e-3)


# --- (c) the length penalty ---

PROMPTS = st.lists(
    st.integers(2, 4).flatmap(
        lambda n: st.tuples(
            st.lists(st.floats(-5, 5, allow_nan=False), min_size=n, max_size=n, unique=True),
            st.lists(st.integers(1, 40), min_size=n, max_size=n),
        )
    ),
    min_size=1,
    max_size=12,
)


def slow_gap(rewards: list[list[float]], tokens: list[list[int]], a: float) -> int:
    total = 0
    for r, n in zip(rewards, tokens, strict=True):
        values = [x - a * length for x, length in zip(r, n, strict=True)]
        order = sorted(range(len(values)), key=values.__getitem__)
        total += n[order[-1]] - n[order[0]]
    return total


@settings(max_examples=150, deadline=None)
@given(PROMPTS)
def test_the_balancing_penalty_is_the_best_of_all(prompts: list[tuple[list[float], list[int]]]) -> None:
    rewards, tokens = [r for r, _ in prompts], [n for _, n in prompts]
    a = balancing_length_penalty(rewards, tokens)
    assert a >= 0
    swaps = {
        (r[i] - r[j]) / (n[i] - n[j])
        for r, n in prompts
        for i, j in itertools.combinations(range(len(r)), 2)
        if n[i] != n[j]
    }
    places = [0.0, *sorted(place for place in swaps if place > 0)]
    between = [(low + high) / 2 for low, high in itertools.pairwise(places)]
    tried = [0.0, *between, places[-1] + 1.0]
    best = min(abs(slow_gap(rewards, tokens, place)) for place in tried)
    assert abs(slow_gap(rewards, tokens, a)) <= best


def test_a_judge_that_likes_length_is_balanced() -> None:
    draw = random.Random(1)
    tokens = [[draw.randint(5, 60), draw.randint(5, 60)] for _ in range(500)]
    rewards = [[0.07 * n + draw.gauss(0, 1) for n in pair] for pair in tokens]
    assert slow_gap(rewards, tokens, 0.0) / 500 > 10
    a = balancing_length_penalty(rewards, tokens)
    assert a == pytest.approx(0.07, abs=0.02)
    assert abs(slow_gap(rewards, tokens, a)) / 500 < 0.2
    choice = select_pair([r - a * n for r, n in zip(rewards[0], tokens[0], strict=True)], "x")
    assert {choice.chosen, choice.rejected} == {0, 1}


def test_no_penalty_where_chosen_ones_are_the_shorter() -> None:
    assert balancing_length_penalty([[1.0, 0.0]], [[3, 9]]) == 0.0
    with pytest.raises(ValueError, match="no prompts"):
        balancing_length_penalty([], [])


# --- (d) the stop rule ---


def decaying(accuracies: list[float], limit: float | None) -> tuple[Plan, dict[str, Manifest]]:
    recipe = Recipe.model_validate(mini(evaluation={"max_judge_decay": limit}))
    plan = compile_plan(recipe, DigestMemo(Path("nowhere/.digests.json")))
    found = {
        f"evaluate-{i}": Manifest(
            **{**FIELDS, "id": f"evaluate-{i}", "metrics": {"heldout_accuracy": accuracy}}, files={}
        )
        for i, accuracy in enumerate(accuracies)
    }
    return plan, found


def test_a_decaying_judge_labels_no_more() -> None:
    plan, found = decaying([0.78, 0.75], 0.02)
    decay = judge_decay(plan.recipe, found)
    assert decay is not None
    assert decay.stage == "generate-2"
    assert "fell from 78.0% to 75.0%" in str(decay)
    assert "evaluation.max_judge_decay (2.0%)" in str(decay)


@pytest.mark.parametrize(
    ("accuracies", "limit"),
    [
        ([0.78, 0.75], None),
        ([0.78, 0.75], 0.05),
        ([0.70, 0.75], 0.0),
        ([0.78], 0.0),
        ([], 0.0),
        ([0.78, 0.78, 0.1], 0.0),  # after the last iteration there is nothing to stop
    ],
)
def test_other_judges_go_on(accuracies: list[float], limit: float | None) -> None:
    plan, found = decaying(accuracies, limit)
    assert judge_decay(plan.recipe, found) is None
