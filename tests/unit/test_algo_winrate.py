"""Win rates against slow, obvious references."""

import math
import random

import pytest

from spa_recipes.algo.winrate import length_controlled_win_rate, outcomes


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
    assert length_controlled_win_rate(outcome, ours, theirs) == pytest.approx(
        slow_length_controlled(outcome, ours, theirs), rel=1e-5
    )


def test_wins_that_only_length_brought_are_taken_out() -> None:
    draw = random.Random(3)
    gaps = [draw.randint(-20, 40) for _ in range(4000)]
    outcome = [float(draw.random() < 1 / (1 + math.exp(-3 * math.tanh(gap / 20)))) for gap in gaps]
    ours = [100 + gap for gap in gaps]
    assert sum(outcome) / len(outcome) > 0.6
    assert length_controlled_win_rate(outcome, ours, [100] * len(gaps)) == pytest.approx(0.5, abs=0.05)


def test_equal_lengths_change_nothing() -> None:
    outcome = [1.0] * 7 + [0.0] * 3
    assert length_controlled_win_rate(outcome, [9] * 10, [9] * 10) == pytest.approx(0.7, abs=1e-3)


def test_always_winning_stays_finite_and_no_pairs_is_an_error() -> None:
    assert 0.9 < length_controlled_win_rate([1.0] * 20, list(range(20)), [5] * 20) < 1.0
    with pytest.raises(ValueError, match="no pairs"):
        length_controlled_win_rate([], [], [])
