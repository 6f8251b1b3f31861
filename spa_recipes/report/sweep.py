"""What a sweep came to: the figures of each variant on each seed, and the differences seed by seed."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from spa_recipes.algo.paired import Estimate, estimate, holm
from spa_recipes.plan import Plan
from spa_recipes.recipe.sweep import Sweep, Variant
from spa_recipes.report.charts import Reach, differences_chart
from spa_recipes.report.figures import COUNT, FIGURES, LARGE_COUNT, PERCENT, Figure, columns
from spa_recipes.report.policies import evaluated, measured
from spa_recipes.state.stagedir import Manifest

Values = dict[str, float | None]
"""Figures of a policy by metric; None where nothing was measured."""
_OF_ROUNDS = ("generate", "judge", "refine", "evaluate")


class Metric(NamedTuple):
    """A column of the table: its heading, the factor of its numbers, and their digits."""

    heading: str
    factor: float
    digits: int

    def number(self, value: float, *, sign: bool = False) -> str:
        """A value as it is written in the table."""
        return f"{value * self.factor:{'+' if sign else ''}.{self.digits}f}"


class Measured(NamedTuple):
    """A variant and its figures on each seed that was run."""

    variant: Variant
    seeds: dict[int, Values]

    def values(self, metric: str) -> dict[int, float]:
        """The known values of a metric by seed."""
        return {seed: value for seed, found in self.seeds.items() if (value := found.get(metric)) is not None}


class Compared(NamedTuple):
    """The difference of two variants in one metric.

    Attributes:
        found: of the differences on the seeds that both have.
        better: on how many of them the first variant has more.
        corrected: p after Holm's correction; None for a difference that is not tested.
    """

    of: Variant
    minus: Variant
    metric: str
    found: Estimate
    better: int
    corrected: float | None


def figures_of(metrics: Sequence[str]) -> dict[str, Figure]:
    """The figures that metrics name, but for labels and steps; KeyError for a metric that there is not."""
    known = _known_figures()
    return {name: known[name] for name in metrics if name not in _COUNTS}


def known_metrics() -> list[str]:
    """Everything that may be a metric: the columns of `spa compare`, then further figures of the iterations."""
    return [*_COUNTS, *_known_figures()]


_COUNTS = ("labels", "steps")


def _known_figures() -> dict[str, Figure]:
    in_columns = {key: figure for key, (figure, _) in columns().items()}
    others = {f.name: f for f in FIGURES if set(f.kinds) & set(_OF_ROUNDS) and f not in in_columns.values()}
    return {**in_columns, **others}


def metric_of(name: str) -> Metric:
    """How a metric is written."""
    if name in _COUNTS:
        return Metric(name, 1.0, 0)
    figure = _known_figures()[name]
    shown = figure.column or figure.iteration or figure.line
    assert shown is not None
    label = shown.label.removesuffix(" (95 %)")
    if shown.pattern == PERCENT:
        return Metric(f"{label}, %", 100.0, 1)
    return Metric(label, 1.0, 0 if shown.pattern in (COUNT, LARGE_COUNT) else 2)


def values_of(
    plan: Plan, found: Mapping[str, Manifest], policy: str | int, figures: Mapping[str, Figure]
) -> Values | None:
    """The figures of the policy that a variant asks for; None where it is not evaluated."""
    known = evaluated(plan, found)
    name = known[-1] if policy == "last" and known else str(policy)
    return measured(plan, found, name, figures) if name in known else None


def best(measured: Sequence[Measured], metric: str, keep: int) -> list[str]:
    """Names of the variants with the largest means of a metric; of equal ones those that are listed first."""
    means = {m.variant.name: estimate([*known.values()]).mean for m in measured if (known := m.values(metric))}
    return sorted(means, key=lambda name: -means[name])[:keep]


def compared(sweep: Sweep, measured: Sequence[Measured]) -> list[Compared]:
    """The differences that a sweep shows, metric by metric, as far as both variants have a seed in common.

    p is corrected for the hypotheses, which are about the first metric. One that was stated counts even where its runs
    are missing: a family does not shrink by failures.
    """
    by_name = {m.variant.name: m for m in measured}
    pairs = [pair for pair in dict.fromkeys(sweep.pairs) if set(pair) <= by_name.keys()]
    found = [one for metric in sweep.metrics for pair in pairs if (one := _difference(by_name, *pair, metric))]
    tests = [i for i, one in enumerate(found) if _is_tested(one, sweep)]
    missing = 0 if sweep.hypotheses is None else len(sweep.hypotheses) - len(tests)
    known = [p for i in tests if (p := found[i].found.p) is not None]
    for i, p in zip(tests, holm([*known, *[1.0] * missing]), strict=False):
        found[i] = found[i]._replace(corrected=p)
    return found


def _difference(by_name: Mapping[str, Measured], of: str, minus: str, metric: str) -> Compared | None:
    ours, theirs = by_name[of].values(metric), by_name[minus].values(metric)
    gaps = [value - theirs[seed] for seed, value in ours.items() if seed in theirs]
    if not gaps:
        return None
    return Compared(
        by_name[of].variant, by_name[minus].variant, metric, estimate(gaps), sum(gap > 0 for gap in gaps), None
    )


def _is_tested(one: Compared, sweep: Sweep) -> bool:
    is_hypothesis = one.of.name in sweep.tested and one.minus.name == sweep.control
    return is_hypothesis and one.metric == sweep.metrics[0] and one.found.p is not None


def variants_markdown(metrics: Sequence[str], measured: Sequence[Measured]) -> str:
    """The figures of all variants: means and standard deviations over seeds."""
    shown = {name: metric_of(name) for name in metrics if any(m.values(name) for m in measured)}
    lines = _header(["", *(metric.heading for metric in shown.values()), "seeds"])
    for one in measured:
        cells = [_mean_cell([*one.values(name).values()], metric) for name, metric in shown.items()]
        lines.append(_row([one.variant.title, *cells, str(len(one.seeds))]))
    return "\n".join(lines) + "\n"


def _mean_cell(values: Sequence[float], metric: Metric) -> str:
    if not values:
        return ""
    found = estimate(values)
    spread = f" ± {metric.number(found.sd)}" if found.sd else ""
    return metric.number(found.mean) + spread


def differences_markdown(metric: str, found: Sequence[Compared]) -> str:
    """The differences in one metric for people; p only where one is tested."""
    shown, rows = metric_of(metric), [one for one in found if one.metric == metric]
    tested = any(one.corrected is not None for one in rows)
    headings = [f"{shown.heading}, of", "minus that of", "difference (95 %)", "better on", *(["p, Holm"] * tested)]
    lines = _header(headings)
    for one in rows:
        p = [] if not tested else [_p_cell(one)]
        better = f"{one.better} of {one.found.n} seeds"
        lines.append(_row([one.of.title, one.minus.title, _difference_cell(one.found, shown), better, *p]))
    return "\n".join(lines) + "\n"


def _difference_cell(found: Estimate, metric: Metric) -> str:
    mean = metric.number(found.mean, sign=True)
    if found.low is None or found.high is None:
        return mean
    return f"{mean} ({metric.number(found.low, sign=True)} to {metric.number(found.high, sign=True)})"


def _p_cell(one: Compared) -> str:
    if one.corrected is None:
        return ""
    return f"{one.corrected:.3f}" if one.corrected >= 0.001 else "< 0.001"


def _header(headings: Sequence[str]) -> list[str]:
    return [_row(headings), "|" + "---|" * len(headings)]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def values_csv(metrics: Sequence[str], measured: Sequence[Measured]) -> str:
    """A line for each variant and seed."""
    rows = [
        {"variant": m.variant.name, "label": m.variant.title, "seed": seed, **{name: found[name] for name in metrics}}
        for m in measured
        for seed, found in m.seeds.items()
    ]
    return _csv(["variant", "label", "seed", *metrics], rows)


def differences_csv(found: Sequence[Compared]) -> str:
    """A line for each difference and metric: its t interval, p of the paired t test, and p after Holm's correction."""
    rows = [
        {
            "metric": one.metric,
            "of": one.of.name,
            "minus": one.minus.name,
            "seeds": one.found.n,
            "better": one.better,
            "mean": one.found.mean,
            "sd": one.found.sd,
            "low": one.found.low,
            "high": one.found.high,
            "p": None if one.corrected is None else one.found.p,
            "p_holm": one.corrected,
        }
        for one in found
    ]
    return _csv(["metric", "of", "minus", "seeds", "better", "mean", "sd", "low", "high", "p", "p_holm"], rows)


def _csv(headings: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, headings, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def figure_svg(sweep: Sweep, found: Sequence[Compared]) -> str:
    """The differences in the first metric as a figure; empty where none has an interval."""
    metric = metric_of(sweep.metrics[0])
    reaches = [
        Reach(_pair_title(one, sweep), *(metric.factor * value for value in (e.mean, e.low, e.high)))
        for one in found
        if one.metric == sweep.metrics[0] and (e := one.found).low is not None and e.high is not None
    ]
    control = next(variant for variant in sweep.variants if variant.name == sweep.control)
    alone = all(one.minus.name == sweep.control for one in found)
    words = f"difference from {control.title}{'' if alone else ' unless another is named'}"
    return differences_chart(reaches, x=f"{metric.heading}: {words}, 95 % interval")


def _pair_title(one: Compared, sweep: Sweep) -> str:
    return one.of.title if one.minus.name == sweep.control else f"{one.of.title} minus {one.minus.title}"


def page_markdown(sweep: Sweep, measured: Sequence[Measured], found: Sequence[Compared], notes: Sequence[str]) -> str:
    """The whole result as Markdown.

    Args:
        notes: what a reader has to know besides, a line each.
    """
    control = next(variant for variant in sweep.variants if variant.name == sweep.control)
    parts = [
        f"# {sweep.name}",
        *([sweep.description] if sweep.description else []),
        "Mean ± standard deviation over the seeds.",
        variants_markdown(sweep.metrics, measured),
    ]
    if found:
        parts += [
            f"Differences seed by seed, with the 95 % t interval of their mean. The control is {control.title}. "
            + _of_tests(sweep, found),
            *(differences_markdown(metric, found) for metric in sweep.metrics if _has(metric, found)),
        ]
    return "\n\n".join(part.rstrip("\n") for part in [*parts, *notes]) + "\n"


def _has(metric: str, found: Sequence[Compared]) -> bool:
    return any(one.metric == metric for one in found)


def _of_tests(sweep: Sweep, found: Sequence[Compared]) -> str:
    tests = sum(one.corrected is not None for one in found)
    if tests:
        count = tests if sweep.hypotheses is None else len(sweep.hypotheses)
        return (
            f"p is that of the paired t test, with Holm's correction for {count} hypotheses"
            if count > 1
            else "p is that of the paired t test"
        ) + f" about {metric_of(sweep.metrics[0]).heading.removesuffix(', %')}."
    if sweep.halving:
        return "Nothing is tested: these seeds chose the variants."
    return "Nothing is tested."
