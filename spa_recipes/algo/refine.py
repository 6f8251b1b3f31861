"""DPO and self-refinement: the method in spa_recipes/README.md, 0. Seed and 3. Refine (SPA, arXiv 2406.04412).

Losses and divergences beside the method's are in `variants.py`.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.nn.functional import logsigmoid


def dpo_margin(
    policy_chosen_B: torch.Tensor,
    policy_rejected_B: torch.Tensor,
    reference_chosen_B: torch.Tensor,
    reference_rejected_B: torch.Tensor,
    beta: float,
) -> torch.Tensor:
    """m = beta*[log pi(y_w|x) - log pi_ref(y_w|x)] - beta*[log pi(y_l|x) - log pi_ref(y_l|x)], so p_theta = sigmoid(m).

    Args:
        policy_chosen_B, policy_rejected_B: log-probs under the policy (or under the de-coupled distribution, for the
            detector), sums over response tokens in nats.
        reference_chosen_B, reference_rejected_B: the same under the training reference.
        beta: DPO temperature.

    Returns:
        margin_B.
    """
    return beta * ((policy_chosen_B - reference_chosen_B) - (policy_rejected_B - reference_rejected_B))


def dpo_loss(margin_B: torch.Tensor) -> torch.Tensor:
    """L_DPO = -log p_theta(y_w > y_l | x) = -log sigmoid(m), per pair: loss_B."""
    return -logsigmoid(margin_B)


def flag_noisy(p_detect_B: torch.Tensor, tau: float | None) -> torch.Tensor:
    """z = 1 where p~(y_w > y_l | x) < tau, else 0; carries no gradient. Without a tau nothing is flagged.

    Returns:
        z_B in the dtype of `p_detect_B`.
    """
    p_detect_B = p_detect_B.detach()
    return torch.zeros_like(p_detect_B) if tau is None else (p_detect_B < tau).to(p_detect_B.dtype)


def detection_margin(policy_margin_B: torch.Tensor, judge_margin_B: torch.Tensor, detector: str) -> torch.Tensor:
    """The margin whose sigmoid is the detector's p~: log-odds that the label is right.

    Args:
        policy_margin_B: beta times the (de-coupled) difference of log-ratios: the method's detector, `policy`.
        judge_margin_B: reward difference that the judge saw: `judge`. Not in the paper.
        detector: `policy`, `judge`, or `both`, which adds the log-odds.

    Returns:
        margin_B, without gradient.
    """
    margins = {"policy": (policy_margin_B,), "judge": (judge_margin_B,), "both": (policy_margin_B, judge_margin_B)}
    return torch.stack(margins[detector]).sum(dim=0).detach()


def refined_loss(
    margin_B: torch.Tensor,
    z_B: torch.Tensor,
    alpha: float,
    loss: Callable[[torch.Tensor], torch.Tensor] = dpo_loss,
) -> torch.Tensor:
    """(1 - alpha*z) * L(m) + alpha*z * L(-m), per pair: loss_B.

    With the method's L(m) = -log sigmoid(m), L(-m) is -log p_theta(y_l > y_w | x), and a pair with z = 0 has the plain
    DPO loss.

    Args:
        loss: L: the loss of each pair as a function of margin_B, whose sign is turned for the flipped label.
    """
    weight_B = alpha * z_B.detach()
    return (1.0 - weight_B) * loss(margin_B) + weight_B * loss(-margin_B)


def percentile(values: Sequence[float], k: float) -> float:
    """The k-th percentile by linear interpolation between order statistics, the default rule of numpy.percentile.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("no percentile of no values")
    ordered = sorted(values)
    position = k / 100.0 * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


class ThresholdWindow:
    """p~ of the most recent pairs, and tau as their k-th percentile.

    Args:
        k: percentile, between 0 and 100.
        size: pairs kept; older ones fall out.
        min_pairs: pairs needed before there is a tau.
    """

    def __init__(self, k: float, size: int, min_pairs: int) -> None:
        self.k, self.min_pairs = k, min_pairs
        self._values: deque[float] = deque(maxlen=size)

    def __len__(self) -> int:
        return len(self._values)

    def tau(self) -> float | None:
        """The threshold, or None while fewer than `min_pairs` pairs are known."""
        return percentile(list(self._values), self.k) if len(self._values) >= self.min_pairs else None

    def push(self, p_detect: Iterable[float]) -> None:
        """Add pairs, the newest last."""
        self._values.extend(p_detect)

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint, in plain JSON types; floats survive JSON exactly."""
        return {"values": list(self._values)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state; where it holds more pairs than fit, only the newest are kept."""
        self._values = deque((float(value) for value in state["values"]), maxlen=self._values.maxlen)
