"""Measures a member on held-out labelled pairs, which no training saw; an evaluation measures policies on them, too."""

import math
from collections.abc import Sequence
from typing import Any, cast

import torch

from spa_recipes.algo.judgment import implicit_reward
from spa_recipes.algo.noise import is_inside
from spa_recipes.data.chat import Renderer
from spa_recipes.data.rows import PairRow, read_rows, write_jsonl
from spa_recipes.data.stage_rows import HeldoutRatioRow, HeldoutRow, LabelMarginRow
from spa_recipes.generation.scoring import Scored
from spa_recipes.stages.common import mean, model_section, renderer_of, share, token_pair
from spa_recipes.stages.context import NO_RESULT, Context, Result
from spa_recipes.stages.log_ratios import LogRatios, log_ratios
from spa_recipes.stages.score import score_pairs

Rows = list[HeldoutRow] | list[HeldoutRatioRow]
"""Of each held-out pair log-probs; or log-ratios against pi_init, where both models are read together."""


def run(context: Context) -> Result:
    """Write `margins.jsonl`: how much the member prefers what each label prefers."""
    pairs = read_rows(context.input("heldout"), PairRow)
    rows = heldout_rows(context, renderer_of(model_section(context, "policy"), context.notice), pairs)
    if rows is None:
        return NO_RESULT
    margins: list[LabelMarginRow] = [
        {"prompt_id": pair["prompt_id"], "margin": margin}
        for pair, margin in zip(pairs, label_margins(context, rows), strict=True)
    ]
    write_jsonl(context.draft / "margins.jsonl", margins)
    return Result(len(rows), 0, label_accuracy(context, rows))


def heldout_rows(context: Context, renderer: Renderer, pairs: Sequence[PairRow]) -> Rows | None:
    """Log-probs of held-out pairs under the stage's policy, or its log-ratios; none of pi_init, which has none.

    None unless this process commits.
    """
    if "method" not in context.spec.settings:
        return _heldout_logps(context, renderer, pairs)
    return _heldout_ratios(context, renderer, pairs) if "init" in context.spec.inputs else []


def _heldout_logps(context: Context, renderer: Renderer, pairs: Sequence[PairRow]) -> list[HeldoutRow] | None:
    rows = [token_pair(renderer, pair) for pair in pairs]
    logps = score_pairs(context, "heldout", model_section(context, "policy"), rows)
    if logps is None:
        return None
    return [
        {"prompt_id": pair["prompt_id"], "chosen_logp": chosen, "rejected_logp": rejected}
        for pair, (chosen, rejected) in zip(pairs, logps, strict=True)
    ]


def _heldout_ratios(context: Context, renderer: Renderer, pairs: Sequence[PairRow]) -> list[HeldoutRatioRow] | None:
    rows = [token_pair(renderer, pair) for pair in pairs]
    items = [Scored(row["prompt_ids"], ids) for row in rows for ids in (row["chosen_ids"], row["rejected_ids"])]
    found = log_ratios_in_twos(context, "heldout", ("policy", "init"), items, stack="stack")
    if found is None:
        return None
    return [
        {
            "prompt_id": pair["prompt_id"],
            "chosen_log_ratio": found.values[2 * k],
            "rejected_log_ratio": found.values[2 * k + 1],
            "standard_error": math.hypot(found.errors[2 * k], found.errors[2 * k + 1]),
        }
        for k, pair in enumerate(pairs)
    ]


def log_ratios_in_twos(
    context: Context, name: str, roles: tuple[str, str], items: list[Scored], *, stack: str
) -> LogRatios | None:
    """Log-ratios of answers, two of which are compared; with the input `stack`, those of adapters on the reference."""
    adapter = context.input(stack) if stack in context.spec.inputs else None
    policy, reference = roles if adapter is None else (roles[1], roles[1])
    return log_ratios(context, name, (policy, reference), items, _in_twos(len(items)), adapter=adapter)


def _in_twos(count: int) -> list[tuple[int, int]]:
    return [(k, k + 1) for k in range(0, count - 1, 2)]


def label_margins(context: Context, rows: Rows) -> list[float]:
    """Of each held-out pair, how much the implicit reward against pi_init prefers what the human preferred."""
    beta = context.spec.settings["beta"]
    if "init" in context.spec.inputs:
        ratios = [cast(HeldoutRatioRow, row) for row in rows]
        chosen, rejected = ([row[side] for row in ratios] for side in ("chosen_log_ratio", "rejected_log_ratio"))
    else:
        init = read_rows(context.input("init_logps"), HeldoutRow)
        both = [(cast(HeldoutRow, row), before) for row, before in zip(rows, init, strict=True)]
        chosen = [row["chosen_logp"] - before["chosen_logp"] for row, before in both]
        rejected = [row["rejected_logp"] - before["rejected_logp"] for row, before in both]
    rewards = [implicit_reward(torch.tensor(side, dtype=torch.float64), beta) for side in (chosen, rejected)]
    return [float(margin) for margin in rewards[0] - rewards[1]]


def label_accuracy(context: Context, rows: Rows) -> dict[str, Any]:
    """How often the implicit reward against pi_init prefers what the human preferred; a tie counts one half."""
    margins = label_margins(context, rows)
    metrics = {
        "heldout_accuracy": mean([0.5 if margin == 0 else float(margin > 0) for margin in margins]),
        "heldout_margin": mean(margins),
    }
    if "init" in context.spec.inputs:
        beta = context.spec.settings["beta"]
        errors = [beta * cast(HeldoutRatioRow, row)["standard_error"] for row in rows]
        metrics["heldout_in_noise"] = share([is_inside(*one) for one in zip(margins, errors, strict=True)])
    return metrics
