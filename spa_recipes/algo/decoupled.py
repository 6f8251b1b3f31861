"""De-coupled noise detection: the method in spa_recipes/README.md, 3. Refine (SPA, arXiv 2406.04412).

h~ = (1 + lambda)*h_theta - lambda*h_ref are logits; log-softmax of h~ at each response token, summed, is log pi~(y|x).
That is h_ref + (1 + lambda)*(h_theta - h_ref), and to second order in the update h_theta - h_ref is the derivative of
the logits along it, half-way between the two models.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch

from spa_recipes.algo.logps import (
    CHUNK_SIZE,
    LmHead,
    Scratch,
    compute_dtype,
    head_logits,
    logps_dtype,
    observed_token_logps,
    target_logps,
)
from spa_recipes.algo.tangents import Dual, Move, tiles_of_logits, with_target


class DecoupledLogps(NamedTuple):
    """Log-probs of the same target tokens, (N,) each; only those of the policy carry a gradient."""

    policy: torch.Tensor
    reference: torch.Tensor
    decoupled: torch.Tensor


def decoupled_logits(h_theta: torch.Tensor, h_ref: torch.Tensor, lam: float) -> torch.Tensor:
    """h~ = (1 + lambda)*h_theta - lambda*h_ref, of the logits' shape; lambda = 0 gives h_theta."""
    return (1.0 + lam) * h_theta - lam * h_ref


def chunked_decoupled_logps(
    policy_hidden_ND: torch.Tensor,
    policy_head: LmHead,
    reference_hidden_ND: torch.Tensor,
    reference_head: LmHead,
    targets_N: torch.Tensor,
    lam: float,
    chunk_size: int = CHUNK_SIZE,
    *,
    gather_head: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> DecoupledLogps:
    """Policy, reference and de-coupled log-probs in one pass that holds logits of `chunk_size` tokens at a time.

    Args:
        policy_hidden_ND: last hidden state of the policy at the positions that predict the targets.
        policy_head: output layer of the policy; the result is differentiable in both.
        reference_hidden_ND: last hidden state of the reference at the same positions (its D may differ).
        reference_head: output layer of the reference, whole.
        targets_N: token ids.
        lam: lambda, how far the policy is extrapolated away from the reference.
        chunk_size: tokens per chunk.
        gather_head: see `chunked_token_logps`; for the head of the policy.

    Raises:
        ValueError: shapes disagree, among them two vocabularies of different size.
    """
    if reference_hidden_ND.ndim != 2 or reference_hidden_ND.shape[0] != targets_N.shape[0]:
        raise ValueError(
            f"shapes disagree: reference hidden {tuple(reference_hidden_ND.shape)}, targets {tuple(targets_N.shape)}"
        )
    dtype = compute_dtype(reference_hidden_ND)
    frozen = reference_head._replace(weight=reference_head.weight.detach().to(dtype))
    reference_N = torch.empty(targets_N.shape, dtype=logps_dtype(dtype), device=targets_N.device)
    decoupled_N = torch.empty_like(reference_N)

    scratch = Scratch()

    def observe(place: slice, policy_logits_nV: torch.Tensor) -> None:
        reference_logits_nV = head_logits(
            reference_hidden_ND[place].detach().to(dtype), frozen, scratch, "reference logits"
        )
        if reference_logits_nV.shape != policy_logits_nV.shape:
            raise ValueError(
                f"policy and reference have different vocabularies: {policy_logits_nV.shape[1]} and "
                f"{reference_logits_nV.shape[1]} tokens"
            )
        reference_N[place] = target_logps(reference_logits_nV, targets_N[place])
        decoupled_N[place] = target_logps(
            decoupled_logits(policy_logits_nV, reference_logits_nV, lam), targets_N[place]
        )

    policy_N = observed_token_logps(policy_hidden_ND, policy_head, targets_N, chunk_size, gather_head, observe)
    return DecoupledLogps(policy_N, reference_N, decoupled_N)


def decoupled_log_ratios(
    hidden_ND: Dual,
    head: LmHead,
    move: Move,
    bias_tangent_V: torch.Tensor | None,
    targets_N: torch.Tensor,
    *,
    at: float,
    reach: float,
    rows: int,
    columns: int,
) -> torch.Tensor:
    """log pi~ - log pi_ref of each target token, from logits z half-way along the update and their tangents dz.

    With c = 1 + lambda it is c*dz_y - log(sum over v of p_ref(v)*exp(c*dz_v)), where p_ref is the softmax of z - dz/2;
    no logits of two models are subtracted. Exact where the logits are linear in the update; otherwise the error is of
    the third order in the update, as dz is then h_theta - h_ref to second order.

    Args:
        hidden_ND, head, move, bias_tangent_V, targets_N, rows, columns: as in `tangents.tiled_token_logps`.
        at: how far along the direction the logits are: 1/2, where it is the whole update.
        reach: how far the logits go along the direction: 1 + lambda, where it is the whole update.

    Returns:
        (N,), in float64: the two log-sum-exps lie near each other.

    Raises:
        ValueError: shapes disagree.
    """
    if targets_N.shape != hidden_ND.value.shape[:1]:
        raise ValueError(f"shapes disagree: hidden {tuple(hidden_ND.value.shape)}, targets {tuple(targets_N.shape)}")
    target_N = torch.zeros(targets_N.shape, dtype=torch.float64, device=targets_N.device)
    reference_lse_N, decoupled_lse_N = (torch.full_like(target_N, -torch.inf) for _ in range(2))
    for n, words, (z_nC, dz_nC) in tiles_of_logits(
        hidden_ND, head, move, bias_tangent_V, at=at, rows=rows, columns=columns
    ):
        z_nC = z_nC - at * dz_nC  # those of the reference
        moved_nC = reach * dz_nC
        target_N[n] = with_target(target_N[n], moved_nC.double(), targets_N[n], words)
        most_n1 = z_nC.amax(dim=-1, keepdim=True)
        below_nC = z_nC - most_n1  # near the largest logit, which counts most, nothing of dz is lost beside it
        most_n = most_n1.squeeze(-1).double()
        for lse_N, logits_nC in ((reference_lse_N, below_nC), (decoupled_lse_N, below_nC + moved_nC)):
            lse_N[n] = torch.logaddexp(lse_N[n], most_n + logits_nC.logsumexp(dim=-1).double())
    return target_N - (decoupled_lse_N - reference_lse_N)
