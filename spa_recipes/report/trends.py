"""Figures over the iterations of a run and over the steps of a training, and the charts that draw them."""

from collections.abc import Mapping
from typing import NamedTuple

from spa_recipes.report.figures import is_numbered
from spa_recipes.state.stagedir import Manifest


class Trend(NamedTuple):
    """A line of a chart over the iterations; `shift` 1 draws what iteration i measured at the policy i-1, its judge."""

    label: str
    kind: str
    name: str
    shift: int = 0


class Chart(NamedTuple):
    """A chart over the iterations: its axes and its lines."""

    x: str
    y: str
    trends: tuple[Trend, ...]


CHARTS = (
    Chart(
        "policy pi_i",
        "win rate",
        (
            Trend("win rate against pi_init", "evaluate", "win_rate_vs_init"),
            Trend("at equal length", "evaluate", "length_controlled_win_rate_vs_init"),
        ),
    ),
    Chart(
        "judge pi_i",
        "judge accuracy",
        (
            Trend("on held-out labels", "evaluate", "heldout_accuracy"),
            Trend("on its own samples, by the gold reward", "judge", "accuracy_vs_gold", shift=1),
            Trend("on its own samples, by the agreement of members", "reliability", "reliability", shift=1),
        ),
    ),
    Chart(
        "iteration",
        "tokens per answer",
        (
            Trend("chosen", "judge", "chosen_tokens"),
            Trend("rejected", "judge", "rejected_tokens"),
            Trend("held-out answers", "evaluate", "mean_tokens"),
        ),
    ),
    Chart(
        "policy pi_i",
        "KL to pi_init, nats per answer",
        (
            Trend("held-out answers", "evaluate", "kl_to_init"),
            Trend("samples of the iteration", "judge", "sampled_kl_to_init", shift=1),
        ),
    ),
    Chart("policy pi_i", "refusals", (Trend("held-out answers", "evaluate", "refusals"),)),
)
"""The charts of the report over the iterations."""

CURVES = {
    "loss": {"loss": ""},
    "reward": {"rewards/chosen": "chosen", "rewards/rejected": "rejected"},
    "reward margin": {"rewards/margins": ""},
    "reward accuracy": {"rewards/accuracies": ""},
    "gradient norm": {"grad_norm": ""},
}
"""The charts of the report over the steps of a training: their label, and their lines by the name in its log."""


def series(found: Mapping[str, Manifest], trend: Trend) -> list[tuple[int, float]]:
    """(i, value) of a figure over the policies pi_i, in the order of the stages; pi_init is none of them."""
    return [
        (int(name.removeprefix(f"{trend.kind}-")) - trend.shift, manifest.number(trend.name))
        for name, manifest in found.items()
        if is_numbered(name, trend.kind) and trend.name in manifest.metrics
    ]
