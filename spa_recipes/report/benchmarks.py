"""The results of the field's benchmarks, a line each."""

from collections.abc import Mapping
from typing import Any

from spa_recipes.errors import DataError
from spa_recipes.state.stagedir import MANIFEST, Manifest


def benchmark_lines(found: Mapping[str, Manifest]) -> list[str]:
    """What the finished benchmarks among these stages came to.

    Raises:
        DataError: the figures of one are not as its stage wrote them.
    """
    return [
        f"{name}: {line}"
        for name, manifest in found.items()
        if manifest.kind in _WRITTEN
        for line in _text(manifest).splitlines()
    ]


def _text(manifest: Manifest) -> str:
    try:
        return _WRITTEN[manifest.kind](manifest.metrics, manifest.rows)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"the benchmark's figures were altered ({type(error).__name__}: {error})",
            where=f"{MANIFEST} of {manifest.id}",
            fix="move that stage's folder away, and `spa resume` makes it again",
        ) from None


def _alpaca_eval(figures: Mapping[str, Any], rows: int) -> str:
    error = f" ± {figures['alpaca_standard_error']:.2%}" if "alpaca_standard_error" in figures else ""
    line = f"win rate {figures['alpaca_win_rate']:.2%}{error}"
    if "alpaca_length_controlled" in figures:
        line += f", length-controlled {figures['alpaca_length_controlled']:.2%}"
    return f"{line} over {rows} instructions"


def _mt_bench(figures: Mapping[str, Any], rows: int) -> str:
    turns = ", ".join(
        f"turn {name.removeprefix('mt_bench_turn_')} {_score(value)}"
        for name, value in figures.items()
        if name.startswith("mt_bench_turn_")
    )
    categories = ", ".join(f"{name} {_score(value)}" for name, value in figures["mt_bench_categories"].items())
    unrated = f"; {figures['unrated']} of {rows} judgments without a rating" if figures["unrated"] else ""
    return f"{_score(figures['mt_bench_score'])} ({turns}); {categories}{unrated}"


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _pairwise(figures: Mapping[str, Any], rows: int) -> str:
    order = f"; on {figures['order_decides']} the order decided" if figures["order_decides"] else ""
    name = "pairwise_length_controlled"
    ends = f" ({figures[f'{name}_low']:.1%} to {figures[f'{name}_high']:.1%})" if f"{name}_low" in figures else ""
    return (
        f"win rate {figures['pairwise_win_rate']:.1%} (95 %: {figures['pairwise_low']:.1%} to "
        f"{figures['pairwise_high']:.1%}), at equal length {figures[name]:.1%}{ends}; "
        f"{figures['wins']} won, {figures['losses']} lost, {figures['draws']} drawn{order}"
    )


def _lm_eval(figures: Mapping[str, Any], rows: int) -> str:
    """A line per task: each metric with its standard error, and what it was before."""
    against = figures["against"]
    return "\n".join(
        f"{task}: " + "; ".join(_metric(name, score, against) for name, score in metrics.items())
        for task, metrics in figures["scores"].items()
    )


def _metric(name: str, score: Mapping[str, Any], against: str | None) -> str:
    metric, _, kind = name.partition(",")
    label = metric if kind == "none" else f"{metric} ({kind})"
    line = f"{label} {_with_error(score['value'], score['stderr'])}"
    if "other" not in score:
        return line
    difference = _with_error(score["difference"], score["difference_stderr"], sign="+")
    return f"{line}, {against} {_with_error(score['other'], score['other_stderr'])}, difference {difference}"


def _with_error(value: float, error: float | None, sign: str = "") -> str:
    return f"{value:{sign}.4g}" + ("" if error is None else f" ± {error:.2g}")


_WRITTEN = {
    "alpaca_score": _alpaca_eval,
    "mt_bench_grades": _mt_bench,
    "win_rate": _pairwise,
    "lm_eval_scores": _lm_eval,
}
