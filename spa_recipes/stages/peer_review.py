"""Co-teaching: the labels of a chain are reviewed by the policy of the other chain, its peer."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from typing import Any

from spa_recipes.algo.judgment import smallest_losses
from spa_recipes.data.stage_rows import JudgmentRow
from spa_recipes.errors import StageError
from spa_recipes.stages.common import mean, share
from spa_recipes.stages.judge_rewards import Judged, peer_rewards


class PeerReview:
    """What the peer says of labels, in their order. The labels stay as they are; the review chooses among them."""

    def __init__(self, forget_rate: float) -> None:
        self._forget_rate = forget_rate
        self._margins = array("d")
        self._gold = array("d")

    def note(self, judgment: JudgmentRow, given: Judged) -> None:
        """Note how much the peer prefers the chosen answer.

        Raises:
            StageError: its reward is not a number.
        """
        rewards = peer_rewards(given).tolist()
        margin = rewards[judgment["chosen"]] - rewards[judgment["rejected"]]
        if not math.isfinite(margin):
            raise StageError(
                f"the peer's margin is {margin}: the pair cannot be reviewed",
                where=f"prompt {judgment['prompt_id']}",
                fix="look at the peer's log-probs of these answers, or lower refine.learning_rate",
            )
        self._margins.append(margin)
        gold = judgment["gold"]
        self._gold.append(gold[judgment["chosen"]] - gold[judgment["rejected"]] if gold else 0.0)

    def chosen(self) -> list[int]:
        """Indices of the pairs that the chain learns from, in ascending order."""
        return smallest_losses(self._margins, self._forget_rate)

    def metrics(self, chosen: Sequence[int]) -> dict[str, Any]:
        """How often the peer would give the same label, and how often the labels that it left out were right."""
        left = set(range(len(self._margins))) - set(chosen)
        metrics: dict[str, Any] = {
            "dropped_by_peer": len(left),
            "peer_agreement": mean([0.5 if margin == 0 else float(margin > 0) for margin in self._margins]),
        }
        if decided := [self._gold[i] > 0 for i in left if self._gold[i] != 0]:
            metrics["dropped_accuracy_vs_gold"] = share(decided)
        return metrics
