"""Win rates against slow, obvious references."""

import math
import random

import pytest

from spa_recipes.algo.winrate import confidence_interval, length_controlled_win_rate, outcomes


def slow_length_controlled(outcome: list[float], ours: list[int], theirs: list[int]) -> float:
    """Plain gradient ascent on the penalised log-likelihood, in loops."""
    gaps = [a - b for a, b in zip(ours, theirs, strict=True)]
    mean = sum(gaps) / len(gaps)
    spread = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    xs = [math.tanh(gap / spread) if spread else 0.0 for gap in gaps]
    theta = phi = 0.0
    for _ in range(4000):
        slope_theta, slope_phi = -1e-3 * theta, -1e-3 * phi
        for y, x in zip(outcome, xs, strict=True):
            p = 1 / (1 + math.exp(-(theta + phi * x)))
            slope_theta += y - p
            slope_phi += (y - p) * x
        theta += 4.0 / len(xs) * slope_theta
        phi += 4.0 / len(xs) * slope_phi
    return 1 / (1 + math.exp(-theta))


def test_outcomes() -> None:
    assert outcomes([1.0, 0.0, 2.0], [0.0, 1.0, 2.0]) == [1.0, 0.0, 0.5]


@pytest.mark.parametrize("seed", range(4))
def test_the_fit_is_the_slow_one(seed: int) -> None:
    draw = random.Random(seed)
    theirs = [draw.randint(5, 60) for _ in range(150)]
    ours = [max(1, length + draw.randint(-10, 40)) for length in theirs]
    outcome = [
        draw.choice([0.5, float(draw.random() < 1 / (1 + math.exp(-0.3 - 0.05 * (a - b))))])
        for a, b in zip(ours, theirs, strict=True)
    ]
    assert length_controlled_win_rate(outcome, ours, theirs).rate == pytest.approx(
        slow_length_controlled(outcome, ours, theirs), rel=1e-5
    )


def test_wins_that_only_length_brought_are_taken_out() -> None:
    draw = random.Random(3)
    gaps = [draw.randint(-20, 40) for _ in range(4000)]
    outcome = [float(draw.random() < 1 / (1 + math.exp(-3 * math.tanh(gap / 20)))) for gap in gaps]
    ours = [100 + gap for gap in gaps]
    assert sum(outcome) / len(outcome) > 0.6
    assert length_controlled_win_rate(outcome, ours, [100] * len(gaps)).rate == pytest.approx(0.5, abs=0.05)


def test_equal_lengths_change_nothing() -> None:
    outcome = [1.0] * 7 + [0.0] * 3
    assert length_controlled_win_rate(outcome, [9] * 10, [9] * 10).rate == pytest.approx(0.7, abs=1e-3)


def test_always_winning_stays_finite_and_no_pairs_is_an_error() -> None:
    found = length_controlled_win_rate([1.0] * 20, list(range(20)), [5] * 20)
    assert 0.9 < found.rate < 1.0
    assert found.low < 0.8  # twenty wins do not show that no prompt is ever lost
    with pytest.raises(ValueError, match="no pairs"):
        length_controlled_win_rate([], [], [])


def test_the_interval_at_equal_length_covers_the_truth_as_often_as_it_says() -> None:
    draw = random.Random(5)
    covered = 0
    for _ in range(300):
        gaps = [draw.randint(-20, 40) for _ in range(120)]
        outcome = [float(draw.random() < 1 / (1 + math.exp(-0.4 - math.tanh(gap / 18)))) for gap in gaps]
        found = length_controlled_win_rate(outcome, [100 + gap for gap in gaps], [100] * len(gaps))
        covered += found.low <= 1 / (1 + math.exp(-0.4)) <= found.high
    assert 0.91 <= covered / 300 <= 0.99


def test_the_interval_is_wider_than_that_of_the_plain_rate_and_several_answers_count_as_one() -> None:
    outcome, ours = [1.0, 0.0, 1.0, 1.0] * 25, [10, 4, 9, 12] * 25
    found = length_controlled_win_rate(outcome, ours, [8] * 100)
    low, high = confidence_interval(outcome)
    assert found.high - found.low > high - low
    fewer = length_controlled_win_rate(outcome, ours, [8] * 100, prompts=25)
    assert fewer.rate == found.rate
    assert fewer.low < found.low < found.high < fewer.high
