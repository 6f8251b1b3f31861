"""Weights of the tokens of judged pairs by their implicit rewards, and the reference's log-probs summed with them."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from spa_recipes.algo.credit import normalised, token_rewards, token_weights
from spa_recipes.data.stage_rows import JudgmentRow
from spa_recipes.data.tables import read_token_logps
from spa_recipes.errors import DataError
from spa_recipes.recipe.schema import TokenCredit
from spa_recipes.stages.all_answers import Places

Both = tuple[list[float], list[float]]
"""Of the tokens of a chosen and of a rejected response."""


class Credit(NamedTuple):
    """What token credit gives for each judgment.

    Attributes:
        weights: of the tokens of both responses.
        reference_logps: log-probs of its answers under pi_{i-1}, summed with these weights; None for those of no pair.
    """

    weights: list[Both]
    reference_logps: list[list[float | None]]


def credit_of(
    settings: TokenCredit,
    beta: float,
    judgments: Sequence[JudgmentRow],
    completions: pa.Table,
    place: Places,
    init_logps: Path,
) -> Credit:
    """Weigh the tokens of judged pairs.

    Args:
        beta: scale of the rewards.
        init_logps: table of the log-probs of tokens under pi_init.

    Raises:
        DataError: the sampling kept no log-probs of an answer, or the table has another number of them.
    """
    kept, init = completions["logps"].to_pylist(), read_token_logps(init_logps, completions)
    rows = [place[j["item"], j[side]] for j in judgments for side in ("chosen", "rejected")]
    for row in rows:
        if kept[row] is None or len(kept[row]) != len(init[row]):
            raise DataError(
                f"answer {row} has no log-prob of each token under the policy and under pi_init",
                where="refine.token_credit",
                fix="run the stages generate and score of this iteration again",
            )
    rhat = normalised([token_rewards(kept[row], init[row], beta) for row in rows], settings.normalise)
    weights = [token_weights(r, settings.a, chosen=k % 2 == 0) for k, r in enumerate(rhat)]
    sums = [
        sum(w * logp for w, logp in zip(of_row, kept[row], strict=True))
        for of_row, row in zip(weights, rows, strict=True)
    ]
    both = [*zip(weights[::2], weights[1::2], strict=True)]
    return Credit(both, [_of_pair(j, *of_both) for j, *of_both in zip(judgments, sums[::2], sums[1::2], strict=True)])


def _of_pair(judgment: JudgmentRow, chosen: float, rejected: float) -> list[float | None]:
    """A value for each answer of a judgment, known for those of its pair."""
    known = {judgment["chosen"]: chosen, judgment["rejected"]: rejected}
    return [known.get(k) for k in range(len(judgment["rewards"]))]
