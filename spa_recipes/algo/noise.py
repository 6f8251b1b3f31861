"""What rounding does to margins and labels: a model of its size, and what follows from it for labels.

The log-prob of a response is a sum over its tokens, each with its own rounding error, so the error of a margin between
two responses grows with the square root of their tokens: its standard error is s * sqrt(n_1 + n_2).
"""

import math
from collections.abc import Sequence


def error_per_root_token(errors: Sequence[float], tokens: Sequence[int]) -> float:
    """s, estimated from measured pairs: the root of the mean of e^2 / n.

    Args:
        errors: of some margins (or log-probs), in nats.
        tokens: of the responses that each of them sums over, together.

    Raises:
        ValueError: nothing was measured.
    """
    if not errors:
        raise ValueError("no error of no pairs")
    return math.sqrt(sum(e * e / n for e, n in zip(errors, tokens, strict=True)) / len(errors))


def standard_error(per_root_token: float, tokens: int) -> float:
    """s * sqrt(n), for a log-ratio of one response or for a margin between several: n counts the tokens of all."""
    return per_root_token * math.sqrt(tokens)


def is_inside(margin: float, error: float, errors: float = 2.0) -> bool:
    """Whether a margin lies within so many standard errors of zero; a margin without any error never does."""
    return abs(margin) < errors * error


def flip_probability(margin: float, error: float) -> float:
    """How probable it is that the true margin has the other sign, for normal errors: Phi(-|m| / error)."""
    if error == 0:
        return 0.0
    return 0.5 * math.erfc(abs(margin) / error / math.sqrt(2.0))
