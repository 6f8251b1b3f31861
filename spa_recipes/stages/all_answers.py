"""Rows of a refine stage whose loss reads all answers to a prompt, and not only the pair.

The answers of a row are the chosen one, the rejected one, then the others. Empty answers are left out, as they are of
pairs.
"""

from collections.abc import Mapping, Sequence

import pyarrow as pa

from spa_recipes.algo.variants import win_probabilities
from spa_recipes.data.arrow import take
from spa_recipes.data.stage_rows import JudgmentRow
from spa_recipes.stages.generate import is_empty

Places = Mapping[tuple[int, int], int]
"""The row of each completion by its item and sample."""


def orders_of(judgments: Sequence[JudgmentRow], completions: pa.Table, place: Places) -> list[list[int]]:
    """For each judgment the numbers of its answers, in the order of a row."""
    texts = completions["text"].to_pylist()
    orders = []
    for judgment in judgments:
        pair = [judgment["chosen"], judgment["rejected"]]
        others = [k for k in range(len(judgment["rewards"])) if k not in pair]
        orders.append(pair + [k for k in others if not is_empty(texts[place[judgment["item"], k]])])
    return orders


def with_others(
    judged: pa.Table,
    judgments: Sequence[JudgmentRow],
    orders: Sequence[Sequence[int]],
    completions: pa.Table,
    place: Places,
    reference_logps: Sequence[Sequence[float | None]] | None,
) -> pa.Table:
    """The judged pairs with the tokens of the other answers, and their log-probs under the reference if given."""
    rows = [place[judgment["item"], k] for judgment, order in zip(judgments, orders, strict=True) for k in order[2:]]
    offsets = [0]
    for order in orders:
        offsets.append(offsets[-1] + len(order) - 2)
    answers = take(completions, rows)["response_ids"]
    if isinstance(answers, pa.ChunkedArray):
        answers = answers.combine_chunks()
    judged = judged.append_column("other_ids", pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), answers))
    if reference_logps is None:
        return judged
    known = [[logps[k] for k in order[2:]] for logps, order in zip(reference_logps, orders, strict=True)]
    return judged.append_column("ref_other_logps", pa.array(known, pa.list_(pa.float64())))


def sppo_targets(
    judgments: Sequence[JudgmentRow], orders: Sequence[Sequence[int]], beta: float, *, win_shares: bool
) -> list[list[float]]:
    """For each row the log-ratios that its answers are to have: eta*(P_k - 1/2), with eta = 1/beta.

    Args:
        win_shares: the judge's rewards are the shares of comparisons that an answer won, and so P_k themselves.
    """
    targets = []
    for judgment, order in zip(judgments, orders, strict=True):
        rewards = [judgment["rewards"][k] for k in order]
        wins = rewards if win_shares else win_probabilities(rewards)
        targets.append([(p - 0.5) / beta for p in wins])
    return targets
