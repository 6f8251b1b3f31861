"""How often a judge of the user's choice prefers a model's answer to another model's.

Under every judge, an empty answer loses against one that is not empty, and two empty answers are a tie. A judge that
gives each answer a reward decides the same in both orders.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from spa_recipes.algo.winrate import confidence_interval, length_controlled_win_rate, outcomes
from spa_recipes.data.rows import read_rows, write_jsonl
from spa_recipes.data.stage_rows import OutcomeRow, TwoAnswersRow, VerdictRow
from spa_recipes.data.tables import LOG_RATIOS, LOGPS, REWARDS, read_table
from spa_recipes.sandbox.gold import gold_reward
from spa_recipes.stages.common import mean
from spa_recipes.stages.context import Context, Result
from spa_recipes.stages.generate import is_empty
from spa_recipes.state import atomic


def run(context: Context) -> Result:
    """Write `outcomes.jsonl` (both answers to every prompt, and who won) and `scores.json`."""
    judged = _both_orders(context, read_rows(context.input("pairs"), TwoAnswersRow))
    rows = [_outcome(row, judged.get(row["prompt_id"])) for row in read_rows(context.input("all"), TwoAnswersRow)]
    won = [row["outcome"] for row in rows]
    low, high = confidence_interval(won)
    controlled = length_controlled_win_rate(won, [row["tokens"][0] for row in rows], [row["tokens"][1] for row in rows])
    metrics: dict[str, Any] = {
        "pairwise_win_rate": mean(won),
        "pairwise_low": low,
        "pairwise_high": high,
        "pairwise_length_controlled": controlled.rate,
        "pairwise_length_controlled_low": controlled.low,
        "pairwise_length_controlled_high": controlled.high,
        "wins": sum(value > 0.5 for value in won),
        "losses": sum(value < 0.5 for value in won),
        "draws": sum(value == 0.5 for value in won),
        "order_decides": sum(len(set(row["orders"])) > 1 for row in rows),
    }
    write_jsonl(context.draft / "outcomes.jsonl", rows)
    atomic.write_json(context.draft / "scores.json", {"prompts": len(rows), **metrics})
    return Result(len(rows), 0, metrics)


def _both_orders(context: Context, pairs: Sequence[TwoAnswersRow]) -> dict[str, list[float]]:
    """By prompt, the outcome when the model's answer was shown first, and when it was shown second."""
    if "verdicts" in context.spec.inputs:
        return _by_verdicts(context, pairs)
    rewards = _rewards(context, pairs)
    won = outcomes([ours for ours, _ in rewards], [theirs for _, theirs in rewards])
    return {row["prompt_id"]: [value, value] for row, value in zip(pairs, won, strict=True)}


def _by_verdicts(context: Context, pairs: Sequence[TwoAnswersRow]) -> dict[str, list[float]]:
    """One half for a tie, for a reply without a verdict, and for two equal texts, about which nothing is asked."""
    orders = {row["prompt_id"]: [0.5, 0.5] for row in pairs}
    for row in read_rows(context.input("verdicts"), VerdictRow):
        for_first = {"first": 1.0, "second": 0.0}.get(row["verdict"], 0.5)
        orders[row["prompt_id"]][row["first"]] = for_first if row["first"] == 0 else 1.0 - for_first
    return orders


def _rewards(context: Context, pairs: Sequence[TwoAnswersRow]) -> list[tuple[float, float]]:
    """The rewards of both answers to each prompt."""
    inputs = context.spec.inputs
    if "rewards" in inputs:
        return _by_prompt(context, "rewards", REWARDS)
    if "log_ratios" in inputs:
        return _by_prompt(context, "log_ratios", LOG_RATIOS)
    if "policy_logps" in inputs:
        policy, reference = (_by_prompt(context, f"{role}_logps", LOGPS) for role in ("policy", "reference"))
        return [
            (ours - ours_before, theirs - theirs_before)
            for (ours, theirs), (ours_before, theirs_before) in zip(policy, reference, strict=True)
        ]
    return [
        (gold_reward(row["prompt"][-1]["content"], ours), gold_reward(row["prompt"][-1]["content"], theirs))
        for row in pairs
        for ours, theirs in [row["responses"]]
    ]


def _by_prompt(context: Context, name: str, schema: Any) -> list[tuple[float, float]]:
    """The two values of each prompt, the model's first."""
    values: dict[int, dict[int, float]] = defaultdict(dict)
    columns = [column.to_pylist() for column in read_table(context.input(name), schema).columns]
    for item, sample, value in zip(*columns[:3], strict=True):
        values[item][sample] = value
    return [(values[item][0], values[item][1]) for item in range(len(values))]


def _outcome(row: TwoAnswersRow, judged: list[float] | None) -> OutcomeRow:
    if judged is None:
        ours, theirs = (not is_empty(text) for text in row["responses"])
        judged = [0.5 if ours == theirs else float(ours)] * 2
    return {**row, "orders": judged, "outcome": sum(judged) / 2}
