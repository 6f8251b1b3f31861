"""The charts of a report: lines, bars and ticks are where their values are."""

import math
import re

import pytest

from spa_recipes.report.charts import Series, histogram, line_chart, ticks


def coordinates(svg: str) -> list[tuple[float, float]]:
    points = re.findall(r'<polyline[^>]* points="([^"]*)"', svg)
    return [tuple(map(float, point.split(","))) for line in points for point in line.split()]  # type: ignore[misc]


def test_a_line_goes_where_its_values_are() -> None:
    svg = line_chart([Series("a", [(0, 0.0), (5, 10.0), (10, 5.0)])], x="steps", y="loss")
    (x0, y0), (x1, y1), (x2, y2) = coordinates(svg)
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(2 * (y2 - y1), abs=0.4)  # up is smaller in SVG
    assert ">a</span>" in svg


def test_a_histogram_holds_all_values() -> None:
    svg = histogram([("a", [0.0] * 30 + [1.0] * 10)], x="p", bins=4)
    heights = sorted({round(y, 1) for _, y in coordinates(svg)})
    top, middle, floor = heights[0], heights[1], heights[-1]
    assert (floor - top) == pytest.approx(3 * (floor - middle), abs=0.6)


def test_charts_leave_out_what_is_no_number() -> None:
    assert line_chart([Series("a", [(0, math.nan)])], x="x", y="y") == ""
    assert histogram([("a", [])], x="x") == ""
    assert "nan" not in line_chart([Series("a", [(0, 1.0), (1, math.inf), (2, 2.0)])], x="x", y="y")
    assert "circle" in line_chart([Series("a", [(0, 1.0)])], x="x", y="y")
    assert "<i>" not in line_chart([Series("<i>", [(0, 1.0)])], x="x", y="y")


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.0, 17.0), (0.61, 0.78), (1e-7, 5e-7), (0, 12345)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 7
    assert all(low - 1e-9 <= value <= high + 1e-9 for value in found)
    step = found[1] - found[0]
    assert any(math.isclose(step / 10 ** math.floor(math.log10(step) + 1e-9), f, rel_tol=1e-6) for f in (1, 2, 2.5, 5))


def test_long_lines_are_thinned() -> None:
    svg = line_chart([Series("a", [(float(n), float(n)) for n in range(5000)])], x="x", y="y")
    assert len(coordinates(svg)) <= 300
