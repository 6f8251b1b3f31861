"""Charts as inline SVG, in the colours of the page that they stand in (`--c0`, `--c1`, ... and `currentColor`)."""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from markupsafe import Markup

WIDTH, HEIGHT = 350, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 40
MAX_POINTS = 300
COLOURS = 6


class Series(NamedTuple):
    """A named line of (x, y) points, x rising."""

    name: str
    points: Sequence[tuple[float, float]]


class Reach(NamedTuple):
    """A named value with the ends of its interval."""

    name: str
    middle: float
    low: float
    high: float


class _Scale(NamedTuple):
    """Maps values of an axis to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def line_chart(series: Sequence[Series], *, x: str, y: str, zero: bool = False) -> Markup:
    """Lines over a common axis; points that are not finite are left out.

    Args:
        x, y: what the axes mean, with units.
        zero: whether the y axis must show 0.
    """
    shown = [Series(name, _thinned([p for p in points if all(map(math.isfinite, p))])) for name, points in series]
    shown = [line for line in shown if line.points]
    if not shown:
        return Markup("")
    xs = [point[0] for line in shown for point in line.points]
    ys = [point[1] for line in shown for point in line.points] + ([0.0] if zero else [])
    across = _Scale(*_range(xs, tight=True), _LEFT, WIDTH - _RIGHT)
    up = _Scale(*_range(ys), HEIGHT - _BOTTOM, _TOP)
    parts = _axes(across, up, x, y, whole=all(value == round(value) for value in xs))
    for number, line in enumerate(shown):
        path = " ".join(f"{across(a):.1f},{up(b):.1f}" for a, b in line.points)
        if len(line.points) == 1:
            (a, b) = line.points[0]
            parts.append(f'<circle class="c{number % COLOURS}" cx="{across(a):.1f}" cy="{up(b):.1f}" r="3"/>')
        parts.append(f'<polyline class="line c{number % COLOURS}" points="{path}"/>')
    return _figure(parts, [line.name for line in shown], f"{y} over {x}")


def histogram(series: Sequence[tuple[str, Sequence[float]]], *, x: str, bins: int = 40) -> Markup:
    """Shares of the values that fall into equal bins, an outline for each series over common bins."""
    shown = [(name, [v for v in values if math.isfinite(v)]) for name, values in series]
    shown = [(name, values) for name, values in shown if values]
    if not shown:
        return Markup("")
    low, high = _range([value for _, values in shown for value in values], tight=True)
    width = (high - low) / bins
    lines = []
    for name, values in shown:
        counts = [0] * bins
        for value in values:
            counts[min(int((value - low) / width), bins - 1)] += 1
        points = [(low, 0.0)]
        for place, count in enumerate(counts):
            share = count / len(values)
            points += [(low + place * width, share), (low + (place + 1) * width, share)]
        lines.append(Series(name, [*points, (high, 0.0)]))
    across = _Scale(low, high, _LEFT, WIDTH - _RIGHT)
    up = _Scale(0.0, max(y for line in lines for _, y in line.points) * 1.08, HEIGHT - _BOTTOM, _TOP)
    parts = _axes(across, up, x, "share of pairs")
    for number, line in enumerate(lines):
        path = " ".join(f"{across(a):.1f},{up(b):.1f}" for a, b in line.points)
        parts.append(f'<polygon class="area c{number % COLOURS}" points="{path}"/>')
        parts.append(f'<polyline class="line c{number % COLOURS}" points="{path}"/>')
    return _figure(parts, [line.name for line in lines], f"distribution of {x}")


ALONE_STYLE = """
svg { color-scheme: light dark; --paper: #fff; --ink: #1c2430; --quiet: #5d6878; --rule: #dde2e9; --c0: #2b6cb0; }
@media (prefers-color-scheme: dark) {
  svg { --paper: #12161c; --ink: #e4e9f0; --quiet: #98a4b5; --rule: #2b3340; --c0: #63a4e8; }
}
rect { fill: var(--paper); } .grid { stroke: var(--rule); } .axis { stroke: var(--quiet); }
text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: var(--quiet); }
.title { fill: var(--ink); } .line { stroke: var(--c0); stroke-width: 2; } circle { fill: var(--c0); }
"""
"""The report's colours, for a chart that is a file of its own."""


def differences_chart(reaches: Sequence[Reach], *, x: str) -> str:
    """A file of its own: a row for each value, with its interval and a line at 0; empty without values."""
    if not reaches:
        return ""
    left, right, row, top = 20 + 6.6 * max(len(reach.name) for reach in reaches), 24, 26, 14
    width, bottom = left + 420 + right, top + row * len(reaches)
    ends = [0.0, *(end for reach in reaches for end in (reach.low, reach.high))]
    across = _Scale(*_range(ends), left, width - right)
    parts = [f'<rect width="{width:.0f}" height="{bottom + 44}"/>']
    for value in ticks(across.low, across.high):
        at, kind = f"{across(value):.1f}", "axis" if abs(value) < 1e-12 else "grid"
        parts.append(f'<line class="{kind}" x1="{at}" x2="{at}" y1="{top}" y2="{bottom}"/>')
        parts.append(f'<text x="{at}" y="{bottom + 16}" text-anchor="middle">{_number(value)}</text>')
    for place, reach in enumerate(reaches):
        y = top + row * (place + 0.5)
        parts.append(f'<text class="title" x="12" y="{y + 4:.1f}">{escape(reach.name)}</text>')
        parts.append(
            f'<line class="line" x1="{across(reach.low):.1f}" x2="{across(reach.high):.1f}" y1="{y}" y2="{y}"/>'
        )
        parts.append(f'<circle cx="{across(reach.middle):.1f}" cy="{y}" r="4"/>')
    middle = (left + width - right) / 2
    parts.append(f'<text class="title" x="{middle:.0f}" y="{bottom + 36}" text-anchor="middle">{escape(x)}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {bottom + 44}" width="{width:.0f}" '
        f'role="img" aria-label="{escape(x)}"><style>{ALONE_STYLE}</style>{"".join(parts)}</svg>\n'
    )


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers between two values, at most about so many."""
    rough = (high - low) / most
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(magnitude * factor for factor in (1, 2, 2.5, 5, 10) if magnitude * factor >= rough)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [place * step for place in range(first, last + 1)]


def _range(values: Sequence[float], *, tight: bool = False) -> tuple[float, float]:
    """The ends of an axis: those of the values, with some room unless `tight`; never the same."""
    low, high = min(values), max(values)
    if high - low < 1e-12 * max(1.0, abs(high)):
        room = abs(high) * 0.1 or 1.0
        return low - room, high + room
    room = 0.0 if tight else 0.06 * (high - low)
    return low - room, high + room


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `MAX_POINTS` points: means of stretches of equal length."""
    if len(points) <= MAX_POINTS:
        return list(points)
    size = math.ceil(len(points) / MAX_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def _axes(across: _Scale, up: _Scale, x: str, y: str, *, whole: bool = False) -> list[str]:
    """Ticks, axis and titles; `whole` leaves out ticks of x between whole numbers, which count something."""
    parts = []
    for value in ticks(up.low, up.high):
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{up(value):.1f}" y2="{up(value):.1f}"/>'
        )
        parts.append(f'<text x="{_LEFT - 6}" y="{up(value) + 3.5:.1f}" text-anchor="end">{_number(value)}</text>')
    for value in [value for value in ticks(across.low, across.high) if not whole or value == round(value)]:
        parts.append(
            f'<text x="{across(value):.1f}" y="{HEIGHT - _BOTTOM + 15}" text-anchor="middle">{_number(value)}</text>'
        )
    parts.append(
        f'<line class="axis" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{HEIGHT - _BOTTOM}" y2="{HEIGHT - _BOTTOM}"/>'
    )
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(f'<text class="title" x="{middle:.0f}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x)}</text>')
    half = (HEIGHT - _BOTTOM + _TOP) / 2
    parts.append(
        f'<text class="title" transform="rotate(-90 12 {half:.0f})" x="12" y="{half:.0f}" text-anchor="middle">'
        f"{escape(y)}</text>"
    )
    return parts


def _number(value: float) -> str:
    return f"{value:.4g}".replace("e-0", "e-")


def _figure(parts: Sequence[str], names: Sequence[str], title: str) -> Markup:
    """A chart with its legend, which is text of the page and so wraps and prints like text."""
    keys = "".join(
        f'<span><i class="c{number % COLOURS}"></i>{escape(name)}</span>' for number, name in enumerate(names) if name
    )
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    return Markup(f'<figure>{svg}<figcaption class="legend">{keys}</figcaption></figure>')
