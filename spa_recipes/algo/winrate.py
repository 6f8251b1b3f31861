"""Win rates: a share of comparisons won, its interval, and the rate at equal length."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from spa_recipes.algo.interval import QUANTILE, wilson_interval

_RIDGE = 1e-3
_NEWTON_STEPS = 50


class LengthControlled(NamedTuple):
    """A win rate at equal length, and the ends of its 95 % interval."""

    rate: float
    low: float
    high: float


def outcomes(rewards: Sequence[float], baseline_rewards: Sequence[float]) -> list[float]:
    """1 where our answer has the larger reward, 0 where the baseline's has, one half for a tie."""
    return [
        0.5 if ours == theirs else float(ours > theirs) for ours, theirs in zip(rewards, baseline_rewards, strict=True)
    ]


def confidence_interval(outcome: Sequence[float]) -> tuple[float, float]:
    """Wilson's 95 % interval of a win rate.

    Args:
        outcome: per prompt, from 0 (lost) to 1 (won); prompts are taken to be independent.

    Raises:
        ValueError: no outcomes.
    """
    if not outcome:
        raise ValueError("no interval of no outcomes")
    return wilson_interval(sum(outcome) / len(outcome), len(outcome))


def length_controlled_win_rate(
    outcome: Sequence[float], tokens: Sequence[int], baseline_tokens: Sequence[int], prompts: int | None = None
) -> LengthControlled:
    """The win rate that answers of equal length would have (the idea of AlpacaEval 2.0, arXiv 2404.04475).

    Fits P(win) = sigmoid(theta + phi * tanh(d / sd(d))), where d is our length minus the baseline's, by maximum
    likelihood with a small ridge on both coefficients, and returns sigmoid(theta). AlpacaEval's further term, the
    difficulty of each instruction, needs many models' answers to the same instructions and is left out.

    The interval is Wald's for theta, from the curvature of the likelihood. It is wider than that of the plain win rate,
    since phi is estimated, too, and ties make it wider than it need be.

    Args:
        outcome: 1 win, 0 loss, 0.5 tie, per pair of answers.
        tokens, baseline_tokens: lengths of the two answers.
        prompts: how many the pairs are of; None: as many. Several answers to one prompt count as one.

    Raises:
        ValueError: no pairs.
    """
    if not outcome:
        raise ValueError("no win rate of no pairs")
    y_N = torch.tensor(list(outcome), dtype=torch.float64)
    gap_N = torch.tensor(list(tokens), dtype=torch.float64) - torch.tensor(list(baseline_tokens), dtype=torch.float64)
    spread = gap_N.std(correction=0)
    x_N = torch.tanh(gap_N / spread) if spread > 0 else torch.zeros_like(gap_N)
    features_N2 = torch.stack([torch.ones_like(x_N), x_N], dim=1)
    ridge_22 = _RIDGE * torch.eye(2, dtype=torch.float64)
    coefficients_2 = torch.zeros(2, dtype=torch.float64)
    for _ in range(_NEWTON_STEPS):  # concave: Newton's method converges in a few steps
        p_N = torch.sigmoid(features_N2 @ coefficients_2)
        gradient_2 = features_N2.T @ (y_N - p_N) - ridge_22 @ coefficients_2
        curvature_22 = features_N2.T @ (features_N2 * (p_N * (1 - p_N))[:, None]) + ridge_22
        step_2 = torch.linalg.solve(curvature_22, gradient_2)
        coefficients_2 = coefficients_2 + step_2
        if step_2.abs().max() < 1e-10:
            break
    theta = float(coefficients_2[0])
    variance = float(torch.linalg.inv(curvature_22)[0, 0]) * len(outcome) / (prompts or len(outcome))
    reach = QUANTILE * math.sqrt(variance)
    return LengthControlled(*(_sigmoid(value) for value in (theta, theta - reach, theta + reach)))


def _sigmoid(x: float) -> float:
    return float(torch.sigmoid(torch.tensor(x, dtype=torch.float64)))
