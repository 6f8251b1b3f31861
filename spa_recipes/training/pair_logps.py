"""Log-probs of the answers of a batch: of its pairs, and of the other answers where there are any."""

from collections.abc import Sequence
from typing import NamedTuple

import torch


class Both(NamedTuple):
    """Of the chosen and the rejected response of each pair, (B,) each."""

    chosen: torch.Tensor
    rejected: torch.Tensor


class PairLogps(NamedTuple):
    """Log-probs of both responses.

    Attributes:
        detector, detector_reference: those of the detector's distribution and those that they are compared with; or
            log-ratios, and zeros.
        plain: those of the policy without weights of tokens.
        log_ratios: (A,), of all answers of the batch: of the pairs, then of the others.
    """

    policy: Both
    reference: Both
    detector: Both
    detector_reference: Both
    plain: Both
    log_ratios: torch.Tensor


def of_pairs(values_A: torch.Tensor, inputs: dict[str, torch.Tensor]) -> Both:
    """Of the answers of a batch, those of its pairs: the chosen sequences come first, then the rejected ones."""
    pairs = len(inputs["row"])
    return Both(values_A[:pairs], values_A[pairs : 2 * pairs])


def pairs_of(
    inputs: dict[str, torch.Tensor],
    policy_A: torch.Tensor,
    reference_A: torch.Tensor,
    detector_A: torch.Tensor,
    detector_reference_A: torch.Tensor,
    plain_A: torch.Tensor | None = None,
) -> PairLogps:
    """The log-probs of the pairs of a batch, and the log-ratios of all its answers; see `PairLogps`.

    Args:
        plain_A: None where no tokens are weighed.
    """
    return PairLogps(
        of_pairs(policy_A, inputs),
        of_pairs(reference_A, inputs),
        of_pairs(detector_A, inputs),
        of_pairs(detector_reference_A, inputs),
        of_pairs(policy_A if plain_A is None else plain_A, inputs),
        policy_A - reference_A,
    )


def of_answers(
    known: Sequence[Sequence[float]], inputs: dict[str, torch.Tensor], *, like: torch.Tensor
) -> torch.Tensor:
    """What is known of the answers of each row, in the order of the batch, (A,); 0 for the answers of other rows.

    Args:
        known: by row, of its chosen, its rejected and its other answers.
    """
    rows = zip(inputs["row"].tolist(), inputs["others"].tolist(), strict=True)
    values = [known[row] if 0 <= row < len(known) else [0.0] * (2 + others) for row, others in rows]
    pairs = [each[side] for side in (0, 1) for each in values]
    return like.new_tensor(pairs + [value for each in values for value in each[2:]])
