"""What a user asks of a run: did it help? In sentences, from the figures of finished stages alone."""

from collections.abc import Mapping

from spa_recipes.report.figures import PERCENT, win_rate
from spa_recipes.state.stagedir import Manifest

CONTROL = "evaluate-control"
"""The evaluation of the control."""


def answers(found: Mapping[str, Manifest]) -> list[str]:
    """The answers that the finished stages give, each a sentence without the stop at its end."""
    return [*_did_it_help(found)]


def _did_it_help(found: Mapping[str, Manifest]) -> list[str]:
    """SPA beside DPO on the seed labels alone, with as many steps, on the same prompts."""
    control = found.get(CONTROL)
    if control is None or control.metrics.get("spa_gain") is None:
        return []
    gain, low, high = (control.number(f"spa_gain{end}") for end in ("", "_low", "_high"))
    if low > 0:
        verdict = "it helped"
    elif high < 0:
        verdict = "it did harm: the labels alone do better"
    else:
        verdict = "it is not shown that the iterations helped"
    return [
        f"beside the control (DPO on the seed labels alone, as many steps): SPA's win rate against pi_init is "
        f"{_points(gain)} points higher, prompt by prompt (95 %: {_points(low)} to {_points(high)}), and its answers "
        f"are preferred to the control's on {win_rate(control, 'spa_win_rate')} of the prompts: {verdict}"
    ]


def _points(share: float) -> str:
    return PERCENT.format(share).rstrip("%")
