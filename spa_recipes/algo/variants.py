"""What a refine stage may minimise instead of the method's loss. All of it is off by default.

`m` is the margin of a pair: beta times the difference of the log-ratios log pi_theta/pi_ref of its two responses.
"""

import math
from collections.abc import Sequence

import torch

from spa_recipes.algo.refine import dpo_loss, dpo_margin

CHI_SQUARED_CLIP = 2.0
"""Largest size of a margin with the chi-squared divergence: 2*R_max for rewards between 0 and R_max = 1."""
LARGEST_LOG_Z = 20.0
"""Where exp(log z) stops growing, so that no difference of two infinities becomes NaN."""


def divergence_term(log_z: torch.Tensor, divergence: str) -> torch.Tensor:
    """The implicit reward over beta, of the shape of `log_z` = log pi_theta(y|x) - log pi_ref(y|x).

    `reverse_kl`: log z, as in DPO. `chi_squared`: z + log z (chi-squared PO, arXiv 2407.13399, algorithm 1).
    """
    if divergence == "reverse_kl":
        return log_z
    return log_z.clamp(max=LARGEST_LOG_Z).exp() + log_z


def divergence_margin(
    policy_chosen_B: torch.Tensor,
    policy_rejected_B: torch.Tensor,
    reference_chosen_B: torch.Tensor,
    reference_rejected_B: torch.Tensor,
    beta: float,
    divergence: str,
) -> torch.Tensor:
    """The margin under a divergence, margin_B: `dpo_margin` for `reverse_kl`.

    For `chi_squared` it is clipped to +-`CHI_SQUARED_CLIP`, beyond which a pair has no gradient. Where z = 1, loss and
    gradient are those of DPO with 2*beta.
    """
    if divergence == "reverse_kl":
        return dpo_margin(policy_chosen_B, policy_rejected_B, reference_chosen_B, reference_rejected_B, beta)
    chosen_B, rejected_B = (
        divergence_term(policy_B - reference_B, divergence)
        for policy_B, reference_B in (
            (policy_chosen_B, reference_chosen_B),
            (policy_rejected_B, reference_rejected_B),
        )
    )
    return (beta * (chosen_B - rejected_B)).clamp(-CHI_SQUARED_CLIP, CHI_SQUARED_CLIP)


def mixed_reference(previous_logp: float, log_ratio: float, kappa: float) -> float:
    """log pi_ref(y|x) = (1 - kappa)*log pi_{i-1}(y|x) + kappa*log pi_init(y|x), up to the normaliser.

    That depends on x alone and cancels in a margin. Written as a step from pi_{i-1}, so that the log-ratio may come
    from where it is precise: kappa = 0 gives `previous_logp` to the bit.

    Args:
        log_ratio: log pi_{i-1}(y|x) - log pi_init(y|x).
    """
    return previous_logp - kappa * log_ratio


def pair_loss(margin_B: torch.Tensor, kind: str, beta: float, judge_margin_B: torch.Tensor) -> torch.Tensor:
    """The loss of each pair as a function of its margin, loss_B.

    `sigmoid`: -log sigmoid(m), the method's. `ipo`: (m/beta - 1/(2*beta))^2 (arXiv 2310.12036), where m/beta is a
    difference of sums over tokens; TRL's `ipo` takes means over tokens. `distill`: (m - (r_w - r_l))^2, a regression on
    the judge's margin (reward distillation, arXiv 2405.19316; REBEL, arXiv 2404.16767).

    Args:
        judge_margin_B: r_w - r_l; only `distill` reads it.
    """
    if kind == "sigmoid":
        return dpo_loss(margin_B)
    if kind == "ipo":
        return (margin_B / beta - 1.0 / (2.0 * beta)).square()
    if kind == "distill":
        return (margin_B - judge_margin_B).square()
    raise ValueError(f"no loss {kind!r}")


def win_probabilities(rewards: Sequence[float]) -> list[float]:
    """P_k: the mean over the other answers j of the probability sigmoid(r_k - r_j) that answer k beats answer j.

    Args:
        rewards: of the answers to one prompt, two or more.
    """
    wins = [
        [1.0 / (1.0 + math.exp(min(theirs - ours, 700.0))) for j, theirs in enumerate(rewards) if j != k]
        for k, ours in enumerate(rewards)
    ]
    return [sum(of_one) / len(of_one) for of_one in wins]


def sppo_loss(log_ratio_A: torch.Tensor, target_A: torch.Tensor, row_A: torch.Tensor) -> torch.Tensor:
    """The mean over the answers to each prompt of (log pi/pi_{i-1} - eta*(P_k - 1/2))^2: loss_B (arXiv 2405.00675).

    Args:
        log_ratio_A: log pi_theta(y_k|x) - log pi_{i-1}(y_k|x) of every answer of a batch.
        target_A: eta*(P_k - 1/2) of the same answers.
        row_A: the prompt of each, from 0; every prompt has an answer.
    """
    square_A = (log_ratio_A - target_A).square()
    zero_B = square_A.new_zeros(int(row_A.max()) + 1)
    count_B = zero_B.index_add(0, row_A, torch.ones_like(square_A))
    return zero_B.index_add(0, row_A, square_A) / count_B


def sft_loss(policy_chosen_B: torch.Tensor, tokens_B: torch.Tensor) -> torch.Tensor:
    """-log pi_theta(y_w|x) / |y_w|, per pair: loss_B. TRL's `sft` loss is a mean over the tokens of a batch instead.

    Args:
        tokens_B: |y_w|, response tokens of each chosen response.
    """
    return -policy_chosen_B / tokens_B
