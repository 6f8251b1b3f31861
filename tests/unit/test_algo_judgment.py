"""Judging: rewards, probabilities, and the choice of a pair."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spa_recipes.algo.judgment import implicit_reward, preference_probability, select_pair
from tests.kit import reference_math as plain

LOGPS = st.floats(-500, 0)


@given(beta=st.floats(0.01, 1), logps=st.tuples(LOGPS, LOGPS, LOGPS, LOGPS))
def test_probability_is_that_of_the_equation(beta: float, logps: tuple[float, float, float, float]) -> None:
    policy_1, reference_1, policy_2, reference_2 = (torch.tensor(value, dtype=torch.float64) for value in logps)
    reward_1 = implicit_reward(policy_1 - reference_1, beta)
    reward_2 = implicit_reward(policy_2 - reference_2, beta)
    p = preference_probability(reward_1, reward_2).item()
    assert p == pytest.approx(plain.preference_probability(beta, *logps), rel=1e-9)
    assert p == pytest.approx(1 - preference_probability(reward_2, reward_1).item(), abs=1e-12)


@given(rewards=st.lists(st.floats(-30, 30), min_size=2, max_size=8), key=st.text(max_size=6))
def test_best_and_worst(rewards: list[float], key: str) -> None:
    choice = select_pair(rewards, key)
    assert choice.chosen != choice.rejected
    assert rewards[choice.chosen] == max(rewards)
    assert rewards[choice.rejected] == min(rewards)
    assert choice.margin == max(rewards) - min(rewards)
    assert choice.p_chosen == pytest.approx(plain.sigmoid(choice.margin), rel=1e-12)
    assert choice.p_chosen >= 0.5
    assert choice.tied == (rewards.count(max(rewards)) > 1 or rewards.count(min(rewards)) > 1)
    assert choice == select_pair(torch.tensor(rewards, dtype=torch.float64), key)


@given(first=st.floats(-30, 30), second=st.floats(-30, 30), key=st.text(max_size=6))
def test_swapping_two_responses_mirrors_the_choice(first: float, second: float, key: str) -> None:
    choice, mirrored = select_pair([first, second], key), select_pair([second, first], key)
    assert choice.p_chosen == mirrored.p_chosen
    if first != second:
        assert (choice.chosen, choice.rejected) == (mirrored.rejected, mirrored.chosen)


def test_ties_are_fair_and_repeatable() -> None:
    choices = [select_pair([0.0, 0.0], f"42:{prompt}") for prompt in range(1000)]
    assert all(choice.tied and choice.p_chosen == 0.5 for choice in choices)
    assert 440 < sum(choice.chosen for choice in choices) < 560
    assert choices == [select_pair([0.0, 0.0], f"42:{prompt}") for prompt in range(1000)]
    # Fixed for all time: a change of the rule would relabel pairs of a run that is resumed.
    assert [choice.chosen for choice in choices[:8]] == [select_pair([1.5, 1.5], f"42:{n}").chosen for n in range(8)]


def test_a_tie_among_the_best_of_four() -> None:
    seen = {select_pair([1.0, 3.0, 3.0, 0.0], str(key)) for key in range(50)}
    assert {(choice.chosen, choice.rejected) for choice in seen} == {(1, 3), (2, 3)}
    assert all(choice.tied and choice.margin == 3.0 for choice in seen)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_rewards_must_be_finite(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        select_pair([0.0, bad], "k")


def test_a_pair_needs_two() -> None:
    with pytest.raises(ValueError, match="at least two"):
        select_pair([1.0], "k")
