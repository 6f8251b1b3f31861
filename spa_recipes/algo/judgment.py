"""Direct preference judgment: the method in spa_recipes/README.md, 2. Judge (SPA, arXiv 2406.04412).

p(y_1 > y_2 | x) = sigmoid(beta*[log pi(y_1|x) - log pi_ref(y_1|x)] - beta*[log pi(y_2|x) - log pi_ref(y_2|x)])
"""

import bisect
import hashlib
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch


class PairChoice(NamedTuple):
    """Two of n responses, by index.

    Attributes:
        margin: reward of the chosen response minus that of the rejected one, not negative.
        p_chosen: probability that the chosen one is better, sigmoid(margin).
        tied: whether a tie was broken to find the chosen or the rejected response.
    """

    chosen: int
    rejected: int
    margin: float
    p_chosen: float
    tied: bool


def implicit_reward(log_ratios: torch.Tensor, beta: float) -> torch.Tensor:
    """r(x, y) = beta * [log pi(y|x) - log pi_ref(y|x)], up to a term that depends on x alone.

    Args:
        log_ratios: log pi(y|x) - log pi_ref(y|x), sums over response tokens in nats, of any shape.
        beta: DPO temperature; scales the reward and leaves the order of responses as it is.
    """
    return beta * log_ratios


def balancing_length_penalty(rewards: Sequence[Sequence[float]], tokens: Sequence[Sequence[int]]) -> float:
    """The a >= 0 for which r - a*|y| brings the mean lengths of chosen and rejected responses closest together (DICE).

    The larger a, the shorter the chosen and the longer the rejected ones, so the gap between them falls in steps; a
    step can only be where two responses of a prompt change places. The result lies in the middle of the interval
    between two such places whose gap is nearest to zero, and is 0 where chosen ones are not longer without any penalty.

    Args:
        rewards: per prompt, one reward per response; tokens: lengths of the same responses.

    Raises:
        ValueError: no prompts.
    """
    if not rewards:
        raise ValueError("no length penalty for no prompts")
    swaps = {
        (r[i] - r[j]) / (n[i] - n[j])
        for r, n in zip(rewards, tokens, strict=True)
        for i, j in itertools.combinations(range(len(r)), 2)
        if n[i] != n[j]
    }
    places = [0.0, *sorted(a for a in swaps if a > 0)]
    middles = [0.0, *((low + high) / 2 for low, high in itertools.pairwise(places)), places[-1] + 1.0]

    def gap(a: float) -> int:
        return sum(_length_gap(r, n, a) for r, n in zip(rewards, tokens, strict=True))

    # The first place where the gap is not above zero; the one before it may be nearer.
    first = bisect.bisect_left(range(len(middles) - 1), True, key=lambda place: gap(middles[place]) <= 0)
    return min(middles[max(first - 1, 0) : first + 1], key=lambda a: abs(gap(a)))


def _length_gap(rewards: Sequence[float], tokens: Sequence[int], a: float) -> int:
    """Length of the best response minus that of the worst; 0 where both are the same response."""
    values = [reward - a * length for reward, length in zip(rewards, tokens, strict=True)]
    best, worst = values.index(max(values)), values.index(min(values))
    return tokens[best] - tokens[worst]


def preference_probability(reward_1: torch.Tensor, reward_2: torch.Tensor) -> torch.Tensor:
    """p(y_1 > y_2 | x) = sigmoid(r_1 - r_2), of the rewards' shape."""
    return torch.sigmoid(reward_1 - reward_2)


def select_pair(rewards: torch.Tensor | Sequence[float], tie_key: str) -> PairChoice:
    """The best and the worst of n responses.

    Among equal rewards the choice follows the smallest sha256 of `"{tie_key}:{index}"`: the same on every machine, and
    unrelated to the order in which the responses were sampled.

    Args:
        rewards: (n,), one reward per response, n at least 2.
        tie_key: names the case, e.g. "{seed}:{prompt_id}".

    Raises:
        ValueError: fewer than two rewards, or one that is not finite.
    """
    values = [float(value) for value in (rewards.tolist() if isinstance(rewards, torch.Tensor) else rewards)]
    if len(values) < 2:
        raise ValueError(f"a pair needs at least two responses, not {len(values)}")
    if not all(map(math.isfinite, values)):
        raise ValueError(f"rewards must be finite, not {values}")
    best = [index for index, value in enumerate(values) if value == max(values)]
    worst = [index for index, value in enumerate(values) if value == min(values)]
    chosen = _drawn(best, tie_key)
    rejected = _drawn([index for index in worst if index != chosen], tie_key)
    margin = values[chosen] - values[rejected]
    p_chosen = preference_probability(*torch.tensor([values[chosen], values[rejected]], dtype=torch.float64))
    return PairChoice(chosen, rejected, margin, p_chosen.item(), len(best) > 1 or len(worst) > 1)


def largest_margins(margins: Sequence[float], keep: float) -> list[int]:
    """Indices, in ascending order, of the share `keep` of the pairs that have the largest |margins| (SeRA).

    The number of pairs is rounded, and at least one is kept; of equal margins the earlier ones are. keep = 1 keeps all.
    """
    return _largest([abs(margin) for margin in margins], keep)


def smallest_losses(peer_margins: Sequence[float], forget_rate: float) -> list[int]:
    """Indices, in ascending order, of the share 1 - f of the pairs that a peer finds easiest (co-teaching).

    Easiest are the labels with the smallest loss -log sigmoid(m) under the peer, which falls with m: those with the
    largest margins (arXiv 1804.06872). The number of pairs is rounded, and at least one is kept; of equal margins the
    earlier ones are.

    Args:
        peer_margins: for each pair r(y_w) - r(y_l) by the peer's reward, below 0 where the peer would turn the label.
        forget_rate: f, in [0, 1); 0 keeps all.
    """
    return _largest(peer_margins, 1.0 - forget_rate)


def _largest(values: Sequence[float], share: float) -> list[int]:
    """Indices, in ascending order, of a share of the values: the largest, and of equal ones the earlier."""
    count = max(1, round(share * len(values)))
    return sorted(sorted(range(len(values)), key=lambda i: -values[i])[:count])


def _drawn(indices: list[int], tie_key: str) -> int:
    """The index that the key selects."""
    return min(indices, key=lambda index: hashlib.sha256(f"{tie_key}:{index}".encode()).digest())
