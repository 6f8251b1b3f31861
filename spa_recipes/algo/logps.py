"""Log-probabilities of responses: the method in spa_recipes/README.md (SPA, arXiv 2406.04412).

log pi(y|x) is the sum over the response tokens, the end-of-turn token included and the prompt excluded.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch.nn.functional import linear, log_softmax

CHUNK_SIZE = 512
"""Tokens whose logits are in memory at one time."""


class LmHead(NamedTuple):
    """The output layer, which turns a hidden state into logits.

    `weight` is (V, D) and `bias` (V,). `scale` multiplies the logits (Cohere, Granite); after that, `softcap` bounds
    them by `softcap * tanh(logits / softcap)` (Gemma 2).
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None


def logit_rules(text_config: Any) -> tuple[float, float | None]:
    """`scale` and `softcap` of a causal language model, from its (text) configuration of transformers."""
    softcap: float | None = getattr(text_config, "final_logit_softcapping", None)
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):  # Cohere, Muse Glimmer, Falcon-H1
        factor = getattr(text_config, name, None)
        if factor is not None:
            return float(factor), softcap
    scaling = getattr(text_config, "logits_scaling", None)  # Granite and MiniCPM3 divide, HyperCLOVA X multiplies
    if scaling is None:
        return 1.0, softcap
    return (float(scaling) if text_config.model_type == "hyperclovax" else 1.0 / scaling), softcap


def sequence_logps(
    logits_BTV: torch.Tensor, input_ids_BT: torch.Tensor, response_mask_BT: torch.Tensor
) -> torch.Tensor:
    """log pi(y|x) of each sequence, from whole logits: the simple form, for small models and tests.

    Args:
        logits_BTV: logits at every position; position t predicts token t + 1.
        input_ids_BT: prompt and response, padded on the right.
        response_mask_BT: 1 at the response tokens, the end-of-turn token included.

    Returns:
        logps_B in nats, at least in float32.

    Raises:
        ValueError: shapes disagree, or the first token is a response token (nothing predicts it).
    """
    if logits_BTV.shape[:2] != input_ids_BT.shape or input_ids_BT.shape != response_mask_BT.shape:
        raise ValueError(
            f"shapes disagree: logits {tuple(logits_BTV.shape)}, input_ids {tuple(input_ids_BT.shape)}, "
            f"response_mask {tuple(response_mask_BT.shape)}"
        )
    mask_BT = response_mask_BT.bool()
    if bool(mask_BT[:, 0].any()):
        raise ValueError("the first token of a sequence cannot be a response token: nothing predicts it")
    logps_BTV = log_softmax(at_least_fp32(logits_BTV[:, :-1]), dim=-1)
    token_logps_BT = logps_BTV.gather(-1, input_ids_BT[:, 1:, None]).squeeze(-1)
    return token_logps_BT.masked_fill(~mask_BT[:, 1:], 0.0).sum(dim=1)


def chunked_token_logps(
    hidden_ND: torch.Tensor,
    head_VD: torch.Tensor,
    targets_N: torch.Tensor,
    bias_V: torch.Tensor | None = None,
    chunk_size: int = CHUNK_SIZE,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    gather_head: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> torch.Tensor:
    """Log-probability of each target token; at most `chunk_size` tokens have logits in memory at one time.

    Differentiable in `hidden_ND`, `head_VD` and `bias_V`; the backward pass computes the logits again, chunk by chunk.
    The product runs in the autocast dtype if autocast is on, else in the dtype of `hidden_ND`; the log-softmax runs in
    float32 (float64 stays float64).

    Args:
        hidden_ND: last hidden state at the positions that predict the targets.
        head_VD: weight of the output layer.
        targets_N: token ids.
        bias_V: bias of the output layer.
        chunk_size: tokens per chunk.
        scale, softcap: see `LmHead`.
        gather_head: entered whenever the head is read, in the backward pass too: where weights are sharded
            (DeepSpeed ZeRO-3) it makes them whole.

    Returns:
        logps_N in nats, at least in float32.

    Raises:
        ValueError: shapes disagree or `chunk_size` is below 1.
    """
    return observed_token_logps(
        hidden_ND, LmHead(head_VD, bias_V, scale, softcap), targets_N, chunk_size, gather_head, _ignore
    )


Observer = Callable[[slice, torch.Tensor], None]
"""Called in the forward pass with each chunk's place among the N tokens and its logits of shape (chunk, V)."""


def observed_token_logps(
    hidden_ND: torch.Tensor,
    head: LmHead,
    targets_N: torch.Tensor,
    chunk_size: int,
    gather_head: Callable[[], AbstractContextManager[Any]],
    observe: Observer,
) -> torch.Tensor:
    """`chunked_token_logps` that calls `observe` with the logits of each chunk before they are freed."""
    if hidden_ND.ndim != 2 or targets_N.shape != hidden_ND.shape[:1]:
        raise ValueError(f"shapes disagree: hidden {tuple(hidden_ND.shape)}, targets {tuple(targets_N.shape)}")
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, not {chunk_size}")
    logps_N: torch.Tensor = _ChunkedLogps.apply(  # type: ignore[no-untyped-call]
        hidden_ND, head.weight, head.bias, targets_N, head.scale, head.softcap, chunk_size, gather_head, observe
    )
    return logps_N


@torch.no_grad()
def tiled_token_logps(
    hidden_ND: torch.Tensor, head: LmHead, targets_N: torch.Tensor, *, rows: int, columns: int
) -> torch.Tensor:
    """`chunked_token_logps` without gradients, which holds logits of `rows` tokens and `columns` words at a time.

    A part of the vocabulary fits a processor's caches where the whole one does not.

    Args:
        hidden_ND: last hidden state at the positions that predict the targets.
        head: the output layer, in whose precision the product runs.
        targets_N: token ids.
        rows, columns: size of a tile.

    Returns:
        logps_N in nats, at least in float32.

    Raises:
        ValueError: shapes disagree.
    """
    if hidden_ND.ndim != 2 or targets_N.shape != hidden_ND.shape[:1]:
        raise ValueError(f"shapes disagree: hidden {tuple(hidden_ND.shape)}, targets {tuple(targets_N.shape)}")
    hidden_ND = hidden_ND.to(head.weight.dtype)
    logps_N = torch.empty(targets_N.shape, dtype=logps_dtype(hidden_ND.dtype), device=targets_N.device)
    for place in chunks(len(targets_N), rows):
        logps_N[place] = _logps_over_tiles(hidden_ND[place], head, targets_N[place], columns)
    return logps_N


def _logps_over_tiles(hidden_nD: torch.Tensor, head: LmHead, targets_n: torch.Tensor, columns: int) -> torch.Tensor:
    """The target's logit minus the log-sum-exp over all words; both are collected over parts of the vocabulary."""
    target_n = torch.zeros(targets_n.shape, dtype=logps_dtype(hidden_nD.dtype), device=targets_n.device)
    lse_n = torch.full_like(target_n, -torch.inf)
    for tile in chunks(len(head.weight), columns):
        bias = None if head.bias is None else head.bias[tile]
        logits_nC = head_logits(hidden_nD, head._replace(weight=head.weight[tile], bias=bias))
        is_here_n = (targets_n >= tile.start) & (targets_n < tile.stop)
        token_n = (targets_n - tile.start).clamp(0, logits_nC.shape[1] - 1)
        target_n = torch.where(is_here_n, logits_nC.gather(-1, token_n[:, None]).squeeze(-1), target_n)
        # At every word, logit minus log-softmax is the log-sum-exp, and log-softmax is one kernel. At the largest logit
        # it rounds least.
        lse_n = torch.logaddexp(lse_n, logits_nC.amax(dim=-1) - torch.log_softmax(logits_nC, dim=-1).amax(dim=-1))
    return target_n - lse_n


def at_least_fp32(tensor: torch.Tensor) -> torch.Tensor:
    """float32 for half precision; any other dtype stays as it is."""
    return tensor.to(logps_dtype(tensor.dtype))


def logps_dtype(dtype: torch.dtype) -> torch.dtype:
    """Precision of the log-probs for logits of this precision."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def chunks(count: int, chunk_size: int) -> list[slice]:
    """Consecutive slices that cover `range(count)`."""
    return [slice(start, min(start + chunk_size, count)) for start in range(0, count, chunk_size)]


def compute_dtype(hidden_ND: torch.Tensor) -> torch.dtype:
    """Precision of the product with the head: autocast's if it is on, else that of the hidden states."""
    device = hidden_ND.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_ND.dtype


class Scratch:
    """Memory for the tensors of one chunk, used again for the next chunk.

    On a CPU, new memory takes as long to get from the system as to fill. A GPU's allocator keeps freed memory anyway.
    """

    def __init__(self) -> None:
        self._kept: dict[str, torch.Tensor] = {}

    def room(self, name: str, rows: int, like_V: torch.Tensor) -> torch.Tensor | None:
        """A tensor (rows, V) to write into, with the precision of `like_V`; None where reuse gains nothing."""
        if like_V.device.type != "cpu":
            return None
        kept = self._kept.get(name)
        if kept is None or len(kept) < rows:
            kept = self._kept[name] = like_V.new_empty(rows, like_V.shape[-1])
        return kept[:rows]


def head_logits(
    hidden_nD: torch.Tensor, head: LmHead, scratch: Scratch | None = None, name: str = "logits"
) -> torch.Tensor:
    """Logits of a chunk, at least in float32; call it with autocast off and hidden and weight in one dtype.

    With `scratch` (only without gradients) they are valid until the next call with the same `name`.
    """
    out = None if scratch is None else scratch.room(name, len(hidden_nD), head.weight.T)
    product_nV = linear(hidden_nD, head.weight) if out is None else torch.mm(hidden_nD, head.weight.T, out=out)
    logits_nV = at_least_fp32(product_nV)
    if head.bias is not None:
        logits_nV = logits_nV + head.bias
    logits_nV = logits_nV * head.scale if head.scale != 1.0 else logits_nV
    if head.softcap is not None:
        logits_nV = head.softcap * torch.tanh(logits_nV / head.softcap)
    return logits_nV


def target_logps(logits_nV: torch.Tensor, targets_n: torch.Tensor) -> torch.Tensor:
    """log softmax at the targets, by log-sum-exp as in TRL, so that both trainings agree to the last digits."""
    return logits_nV.gather(-1, targets_n[:, None]).squeeze(-1) - logits_nV.logsumexp(dim=-1)


def _ignore(place: slice, logits_nV: torch.Tensor) -> None:
    """The observer of a plain forward pass."""


class _ChunkedLogps(torch.autograd.Function):
    """Token log-probabilities whose backward pass recomputes the logits."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        targets_N: torch.Tensor,
        scale: float,
        softcap: float | None,
        chunk_size: int,
        gather_head: Callable[[], AbstractContextManager[Any]],
        observe: Observer,
    ) -> torch.Tensor:
        dtype = compute_dtype(hidden_ND)
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, targets_N)
        ctx.settings = (scale, softcap, chunk_size, gather_head, dtype)
        logps_N = torch.empty(hidden_ND.shape[0], dtype=logps_dtype(dtype), device=hidden_ND.device)
        with gather_head(), torch.autocast(hidden_ND.device.type, enabled=False):
            head = LmHead(weight_VD.to(dtype), bias_V, scale, softcap)
            scratch = Scratch()
            for place in chunks(hidden_ND.shape[0], chunk_size):
                logits_nV = head_logits(hidden_ND[place].to(dtype), head, scratch)
                logps_N[place] = target_logps(logits_nV, targets_N[place])
                observe(place, logits_nV)
        return logps_N

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad_N,) = grads
        hidden_ND, weight_VD, bias_V, targets_N = ctx.saved_tensors
        scale, softcap, chunk_size, gather_head, dtype = ctx.settings
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        with gather_head(), torch.autocast(hidden_ND.device.type, enabled=False):
            head = LmHead(weight_VD.to(dtype), bias_V, scale, softcap)
            # The chunks are summed in float32: rounding each of them to bfloat16 would bias the sum.
            grad_hidden_ND = torch.zeros_like(hidden_ND) if needs_hidden else None
            grad_weight_VD = torch.zeros_like(weight_VD, dtype=logps_dtype(dtype)) if needs_weight else None
            grad_bias_V = torch.zeros_like(bias_V, dtype=logps_dtype(dtype)) if needs_bias else None
            scratch = Scratch()
            for place in chunks(hidden_ND.shape[0], chunk_size):
                hidden_nD = hidden_ND[place].to(dtype)
                logits_nV = head_logits(hidden_nD, head, scratch)
                grad_n1 = grad_N[place, None]
                room = scratch.room("gradient", len(hidden_nD), logits_nV)
                grad_nV = torch.softmax(logits_nV, dim=-1, out=room).mul_(-grad_n1)
                grad_nV.scatter_add_(-1, targets_N[place, None], grad_n1.to(grad_nV.dtype))
                if softcap is not None:
                    grad_nV *= 1.0 - (logits_nV / softcap) ** 2
                if scale != 1.0:
                    grad_nV *= scale
                if grad_hidden_ND is not None:
                    grad_hidden_ND[place] = (grad_nV.to(dtype) @ head.weight).to(grad_hidden_ND.dtype)
                if grad_weight_VD is not None:
                    grad_weight_VD.addmm_(grad_nV.T, at_least_fp32(hidden_nD))
                if grad_bias_V is not None:
                    grad_bias_V += grad_nV.sum(dim=0)
        return (
            grad_hidden_ND,
            None if grad_weight_VD is None else grad_weight_VD.to(weight_VD.dtype),
            None if grad_bias_V is None or bias_V is None else grad_bias_V.to(bias_V.dtype),
            *(None,) * 6,
        )
