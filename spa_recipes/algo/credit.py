"""Credit of single tokens by their implicit reward (TGDPO, arXiv 2506.14574). Off by default.

margin = sum over t of y_w of beta*(1 + a*rhat_t)*rho_t - sum over t of y_l of beta*(1 - a*rhat_t)*rho_t, where rho_t is
log pi_theta(y_t)/pi_ref(y_t). The weights are constants: margins are those of DPO with log-probs summed with weights.
"""

import statistics
from collections.abc import Sequence

Responses = Sequence[Sequence[float]]
"""A number for each token of each response."""


def token_rewards(policy_logps: Sequence[float], init_logps: Sequence[float], beta: float) -> list[float]:
    """r_t = beta*[log pi_{i-1}(y_t|...) - log pi_init(y_t|...)]; their sum is the implicit reward of the response.

    Raises:
        ValueError: the two have another number of tokens.
    """
    return [beta * (ours - theirs) for ours, theirs in zip(policy_logps, init_logps, strict=True)]


def normalised(rewards: Responses, how: str) -> list[list[float]]:
    """rhat_t: `none` r_t itself, `max` over the largest |r_t| of its response, `sd` over the deviation of all r_t.

    Where that is 0, so are all rhat_t.
    """
    if how == "none":
        scales = [1.0] * len(rewards)
    elif how == "max":
        scales = [max(map(abs, response), default=0.0) for response in rewards]
    elif how == "sd":
        scales = [statistics.pstdev([r for response in rewards for r in response] or [0.0])] * len(rewards)
    else:
        raise ValueError(f"no normalisation {how!r}")
    return [[r / scale if scale else 0.0 for r in response] for response, scale in zip(rewards, scales, strict=True)]


def token_weights(rhat: Sequence[float], a: float, *, chosen: bool) -> list[float]:
    """1 + a*rhat_t for the tokens of a chosen response, 1 - a*rhat_t for those of a rejected one; a = 0 gives 1."""
    return [1.0 + (a if chosen else -a) * r for r in rhat]
