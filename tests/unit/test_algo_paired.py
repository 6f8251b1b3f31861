"""Means over seeds and their differences: against tables, closed forms, and the density summed up step by step."""

import math
import random

import pytest

from spa_recipes.algo.paired import estimate, holm, t_quantile, two_sided_p

TABLE = {1: 12.7062, 2: 4.3027, 4: 2.7764, 9: 2.2622, 11: 2.2010, 30: 2.0423, 120: 1.9799}
"""97.5 % quantiles by degrees of freedom, as statistics books print them."""


@pytest.mark.parametrize(("df", "quantile"), TABLE.items())
def test_quantiles_are_those_of_the_printed_table(df: int, quantile: float) -> None:
    assert t_quantile(0.975, df) == pytest.approx(quantile, abs=5e-5)


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0, 4.5, 60.0, -2.0])
def test_p_has_the_closed_forms_of_one_and_two_degrees_of_freedom(t: float) -> None:
    assert two_sided_p(t, 1) == pytest.approx(1 - 2 * math.atan(abs(t)) / math.pi, rel=1e-10)
    assert two_sided_p(t, 2) == pytest.approx(1 - abs(t) / math.sqrt(2 + t * t), rel=1e-9)


@pytest.mark.parametrize(("t", "df"), [(0.4, 3), (2.2, 5), (1.5, 11), (3.0, 27)])
def test_p_is_the_area_under_the_density(t: float, df: int) -> None:
    steps = 20_000
    density = [(1 + (t * k / steps) ** 2 / df) ** (-(df + 1) / 2) for k in range(steps + 1)]
    inside = t / steps * (math.fsum(density) - (density[0] + density[-1]) / 2)  # trapezoids from 0 to t
    constant = math.gamma((df + 1) / 2) / (math.sqrt(df * math.pi) * math.gamma(df / 2))
    assert two_sided_p(t, df) == pytest.approx(1 - 2 * constant * inside, abs=1e-8)


def test_the_estimate_of_a_worked_example() -> None:
    """Student's own data (1908): the additional hours of sleep by one drug over another, ten patients."""
    hours = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]
    found = estimate(hours)
    assert found.n == 10
    assert found.mean == pytest.approx(1.58)
    assert found.sd == pytest.approx(1.229995, abs=1e-6)
    assert found.low == pytest.approx(0.7001142, abs=1e-6)
    assert found.high == pytest.approx(2.4598858, abs=1e-6)
    assert found.p == pytest.approx(0.00283289, abs=1e-8)


def test_intervals_contain_the_truth_as_often_as_they_say() -> None:
    chance = random.Random(3)
    inside = 0
    for _ in range(2000):
        found = estimate([chance.gauss(2.0, 5.0) for _ in range(5)])
        assert found.low is not None
        assert found.high is not None
        inside += found.low <= 2.0 <= found.high
    assert 0.935 < inside / 2000 < 0.965


def test_one_value_tells_nothing_of_chance_and_none_is_an_error() -> None:
    assert estimate([3.5]) == (1, 3.5, None, None, None, None)
    with pytest.raises(ValueError, match="no values"):
        estimate([])


def test_equal_values_have_no_width() -> None:
    assert estimate([0.25, 0.25, 0.25]) == (3, 0.25, 0.0, 0.25, 0.25, 0.0)
    assert estimate([0.0, 0.0]).p == 1.0


def plain_holm(ps: list[float], level: float) -> set[int]:
    """Which hypotheses are rejected, by the procedure as it is told: step down until the first that stays."""
    rejected: set[int] = set()
    while len(rejected) < len(ps):
        p, i = min((p, i) for i, p in enumerate(ps) if i not in rejected)
        if p > level / (len(ps) - len(rejected)):
            break
        rejected.add(i)
    return rejected


def test_holm_gives_the_values_of_a_known_example() -> None:
    """As R's p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_holm_rejects_what_the_procedure_rejects() -> None:
    chance = random.Random(5)
    for _ in range(300):
        ps = [chance.random() ** 3 for _ in range(chance.randint(1, 7))]
        adjusted = holm(ps)
        for level in (0.01, 0.05, 0.2, 0.5):
            assert {i for i, p in enumerate(adjusted) if p <= level} == plain_holm(ps, level)
