"""What rounding does to margins: the estimate from some pairs holds for others."""

import math
import random

import pytest

from spa_recipes.algo.noise import error_per_root_token, flip_probability, is_inside, standard_error


def test_the_error_of_a_sum_is_found_from_sixteen_pairs() -> None:
    """Errors of made-up margins: a normal error for each token; 64 other pairs lie within two standard errors."""
    rng = random.Random(0)
    tokens = [rng.randint(20, 600) for _ in range(80)]
    errors = [sum(rng.gauss(0, 0.07) for _ in range(n)) for n in tokens]
    per_root_token = error_per_root_token(errors[:16], tokens[:16])
    assert per_root_token == pytest.approx(0.07, rel=0.4)
    inside = [abs(e) < 2 * standard_error(per_root_token, n) for e, n in zip(errors[16:], tokens[16:], strict=True)]
    assert 0.85 < sum(inside) / 64 <= 1.0


def test_standard_errors_of_two_responses_add_up_to_that_of_their_margin() -> None:
    assert math.hypot(standard_error(0.1, 30), standard_error(0.1, 70)) == pytest.approx(standard_error(0.1, 100))


def test_a_label_is_a_coin_at_zero_and_sure_without_noise() -> None:
    assert flip_probability(0.0, 1.0) == 0.5
    assert flip_probability(1.0, 1.0) == pytest.approx(0.158655, abs=1e-6)
    assert flip_probability(0.3, 0.0) == 0.0
    assert is_inside(-1.9, 1.0)
    assert not is_inside(2.1, 1.0)
    assert not is_inside(0.0, 0.0)


def test_nothing_measured_is_no_error_of_zero() -> None:
    with pytest.raises(ValueError, match="no pairs"):
        error_per_root_token([], [])
