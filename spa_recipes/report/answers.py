"""What a user asks of a run: did it help, and did it harm? In sentences, from figures of finished stages alone."""

from collections.abc import Mapping

from spa_recipes.report.figures import PERCENT, TENTHS, win_rate
from spa_recipes.report.trends import Trend, series
from spa_recipes.state.stagedir import Manifest

CONTROL = "evaluate-control"
"""The evaluation of the control."""
KL = Trend("KL to pi_init", "evaluate", "kl_to_init")


def answers(found: Mapping[str, Manifest]) -> list[str]:
    """The answers that the finished stages give, each a sentence without the stop at its end."""
    return [*_did_it_help(found), *_did_it_harm(found)]


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


def _did_it_harm(found: Mapping[str, Manifest]) -> list[str]:
    """The alignment tax: how far the policies went from pi_init, how long they answer, and how often they refuse."""
    own = {name: stage for name, stage in found.items() if stage.kind == "evaluate" and name != CONTROL}
    first, (newest, last) = own.get("evaluate-init"), [*own.items()][-1] if own else ("", None)
    if first is None or last is None or last is first:
        return []
    parts = []
    if divergences := series(found, KL):
        parts.append(f"KL to pi_init {', '.join(f'pi_{i} {value:.2f}' for i, value in divergences)} (nats per answer)")
    for name, words, pattern in (("mean_tokens", "tokens per answer", TENTHS), ("refusals", "refusals", PERCENT)):
        if first.metrics.get(name) is not None and last.metrics.get(name) is not None:
            parts.append(f"{words} {' -> '.join(pattern.format(stage.number(name)) for stage in (first, last))}")
    return [f"from pi_init to pi_{newest.removeprefix('evaluate-')}: {'; '.join(parts)}"] if parts else []
