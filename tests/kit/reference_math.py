"""The method in plain Python: lists and loops over float64, written from the equations and from nothing else.

Slow and obvious on purpose; the tests compare the tensor code with it.
"""

import math


def log_softmax(logits: list[float]) -> list[float]:
    largest = max(logits)
    log_total = largest + math.log(sum(math.exp(value - largest) for value in logits))
    return [value - log_total for value in logits]


def sigmoid(value: float) -> float:
    if value >= 0:
        return 1.0 / (1.0 + math.exp(-value))
    return math.exp(value) / (1.0 + math.exp(value))


def log_sigmoid(value: float) -> float:
    return min(value, 0.0) - math.log1p(math.exp(-abs(value)))


def sequence_logp(logits: list[list[float]], tokens: list[int], is_response: list[int]) -> float:
    """log pi(y|x): logits[t] predict tokens[t + 1]."""
    total = 0.0
    for position in range(1, len(tokens)):
        if is_response[position]:
            total += log_softmax(logits[position - 1])[tokens[position]]
    return total


def decoupled_logits(policy: list[list[float]], reference: list[list[float]], lam: float) -> list[list[float]]:
    return [
        [(1 + lam) * h_theta - lam * h_ref for h_theta, h_ref in zip(row, reference_row, strict=True)]
        for row, reference_row in zip(policy, reference, strict=True)
    ]


def preference_probability(
    beta: float, policy_1: float, reference_1: float, policy_2: float, reference_2: float
) -> float:
    return sigmoid(beta * (policy_1 - reference_1) - beta * (policy_2 - reference_2))


def refined_loss(margin: float, z: float, alpha: float) -> float:
    return -((1 - alpha * z) * log_sigmoid(margin) + alpha * z * log_sigmoid(-margin))


def refined_loss_slope(margin: float, z: float, alpha: float) -> float:
    """d loss / d margin."""
    return -(1 - alpha * z) * (1 - sigmoid(margin)) + alpha * z * sigmoid(margin)


def percentile(values: list[float], k: float) -> float:
    """Order statistics sit at 0, 100/(n-1), ..., 100 percent; straight lines between them."""
    ordered = sorted(values)
    if len(ordered) == 1:
        return ordered[0]
    width = 100.0 / (len(ordered) - 1)
    for index in range(len(ordered) - 1):
        left = index * width
        if k <= left + width or index == len(ordered) - 2:
            return ordered[index] + (k - left) / width * (ordered[index + 1] - ordered[index])
    raise AssertionError


def divergence_term(policy: float, reference: float, divergence: str) -> float:
    log_z = policy - reference
    return log_z if divergence == "reverse_kl" else math.exp(log_z) + log_z


def divergence_margin(
    beta: float, policy_w: float, reference_w: float, policy_l: float, reference_l: float, divergence: str
) -> float:
    margin = beta * divergence_term(policy_w, reference_w, divergence)
    margin -= beta * divergence_term(policy_l, reference_l, divergence)
    return margin if divergence == "reverse_kl" else max(-2.0, min(2.0, margin))


def pair_loss(kind: str, margin: float, beta: float, judge_margin: float) -> float:
    if kind == "sigmoid":
        return -log_sigmoid(margin)
    if kind == "ipo":
        return (margin / beta - 1 / (2 * beta)) ** 2
    return (margin - judge_margin) ** 2


def win_probabilities(rewards: list[float]) -> list[float]:
    """P_k: how probably answer k beats another one, on average over the others."""
    result = []
    for k in range(len(rewards)):
        total = 0.0
        for j in range(len(rewards)):
            if j != k:
                total += sigmoid(rewards[k] - rewards[j])
        result.append(total / (len(rewards) - 1))
    return result


def sppo_loss(logps: list[float], reference: list[float], wins: list[float], eta: float) -> float:
    """The mean over the answers to one prompt of (log pi/pi_{i-1} - eta*(P_k - 1/2))^2."""
    total = 0.0
    for logp, before, win in zip(logps, reference, wins, strict=True):
        total += (logp - before - eta * (win - 0.5)) ** 2
    return total / len(logps)


def token_logp(logits: list[list[float]], tokens: list[int], position: int) -> float:
    """log pi(y_t|x, y_<t) of the token at a position."""
    return log_softmax(logits[position - 1])[tokens[position]]


def tgdpo_margin(
    beta: float,
    a: float,
    chosen: list[tuple[float, float, float]],
    rejected: list[tuple[float, float, float]],
) -> float:
    """The margin with token credit; each token is (log pi_theta, log pi_ref, rhat)."""
    total = 0.0
    for logp, reference, rhat in chosen:
        total += beta * (1 + a * rhat) * (logp - reference)
    for logp, reference, rhat in rejected:
        total -= beta * (1 - a * rhat) * (logp - reference)
    return total
