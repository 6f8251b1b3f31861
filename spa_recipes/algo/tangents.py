"""Derivatives along a direction, in forward mode, of what has no usable rule in torch: attention and token log-probs.

A value `x` comes with its tangent `dx`, the derivative of `x` along the direction.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch.nn.functional import linear

from spa_recipes.algo.logps import LmHead, at_least_fp32, chunks, logps_dtype

QUERIES = 128
"""Queries of a text whose attention weights exist at one time."""


class Dual(NamedTuple):
    """A tensor and its derivative along the direction."""

    value: torch.Tensor
    tangent: torch.Tensor


class Thin(NamedTuple):
    """A direction (O, I) of low rank: `up` (O, R) times `down` (R, I)."""

    down: torch.Tensor
    up: torch.Tensor


Move = torch.Tensor | Thin | None
"""The direction in which a weight (O, I) moves; None where it stays."""


class MovingWeight(NamedTuple):
    """A weight (O, I) on its way.

    Attributes:
        value: W(t) = W + t*M; W itself where M is thin.
        move: M.
        thin_at: t where M is thin, so that W(t) exists nowhere.
    """

    value: torch.Tensor
    move: Move
    thin_at: float


def moving_weight(weight: torch.Tensor, move: Move, at: float) -> MovingWeight:
    """W + t*M, for as long as it is used.

    In half precision it is rounded to nearest: a weight that moved by one unit in the last place has nothing between
    its ends, and at the middle takes one of them, whichever is even.
    """
    if isinstance(move, torch.Tensor):
        return MovingWeight(torch.add(weight, move, alpha=at), move, 0.0)
    return MovingWeight(weight, move, at)


def moving_linear(x_NI: Dual, layer: MovingWeight) -> Dual:
    """W(t) x and its tangent W(t) dx + M x: three products, or two and thin ones.

    Args:
        x_NI: in the precision of the weight.
        layer: W(t) and M.

    Returns:
        (N, O), in that precision.
    """
    weight, move, at = layer
    value, tangent = linear(x_NI.value, weight), linear(x_NI.tangent, weight)
    if isinstance(move, Thin):
        down, down_tangent = linear(x_NI.value, move.down), linear(x_NI.tangent, move.down)
        tangent.addmm_(down.add(down_tangent, alpha=at), move.up.T)
        value.addmm_(down, move.up.T, alpha=at)
    elif move is not None:
        tangent.addmm_(x_NI.value, move.T)
    return Dual(value, tangent)


def attention(
    query: Dual,
    key: Dual,
    value: Dual,
    *,
    mask: torch.Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    block: int = QUERIES,
) -> Dual:
    """Scaled-dot-product attention and its tangent, in blocks of queries.

    With scores S, weights P = softmax(S) and output O = P V: dP = P * (dS - sum(P * dS)) and dO = P dV + dP V. Products
    run in the precision of the inputs, softmax and sums at least in float32.

    Args:
        query: (B, H, T, D).
        key, value: (B, G, S, D) and (B, G, S, E); H is a multiple of G, and that many queries share a key.
        mask: broadcasts to (B, H, T, S): True where a query sees a key, or what is added to the scores.
        causal: query t sees the keys up to t.
        scale: of the scores; by default 1 / sqrt(D).
        block: queries at one time.

    Returns:
        (B, H, T, E), in the precision of the inputs.
    """
    b, h, t, d = query.value.shape
    g, s, e = key.value.shape[1], key.value.shape[2], value.value.shape[-1]
    scale = 1.0 / math.sqrt(d) if scale is None else scale
    # Queries that share a key stand side by side, so that no key is copied: (B*G, R, T, D).
    q, dq = ((part * scale).reshape(b * g, h // g, t, d) for part in query)
    (k, dk), (v, dv) = ([part.reshape(b * g, s, -1) for part in pair] for pair in (key, value))
    out, tangent = (q.new_empty(b * g, h // g, t, e) for _ in range(2))
    later = torch.full((min(block, t),) * 2, -torch.inf, device=q.device).triu(1)
    for place in chunks(t, block):
        seen = slice(min(place.stop, s) if causal else s)
        shape = (b * g, h // g, place.stop - place.start, seen.stop)
        q_here, dq_here = (part[:, :, place].reshape(b * g, -1, d) for part in (q, dq))
        keys, key_tangents = k[:, seen].transpose(1, 2), dk[:, seen].transpose(1, 2)
        scores = at_least_fp32(q_here @ keys).view(shape)
        moved = at_least_fp32(torch.baddbmm(q_here @ key_tangents, dq_here, keys)).view(shape)
        if causal:
            diagonal = scores[..., place.start :]
            diagonal += later[: diagonal.shape[-2], : diagonal.shape[-1]]
        if mask is not None:
            part = mask.expand(b, h, t, s)[:, :, place, seen].reshape(shape)
            scores = torch.where(part, scores, -torch.inf) if part.dtype == torch.bool else scores + part
        weights = torch.softmax(scores, dim=-1)
        moved.mul_(weights)
        moved.addcmul_(weights, moved.sum(dim=-1, keepdim=True), value=-1.0)
        weights, moved = (part.to(v.dtype).view(b * g, -1, seen.stop) for part in (weights, moved))
        out[:, :, place] = (weights @ v[:, seen]).view(*shape[:3], e)
        tangent[:, :, place] = torch.baddbmm(weights @ dv[:, seen], moved, v[:, seen]).view(*shape[:3], e)
    return Dual(out.view(b, h, t, e), tangent.view(b, h, t, e))


def tiled_token_logps(
    hidden_ND: Dual,
    head: LmHead,
    move: Move,
    bias_tangent_V: torch.Tensor | None,
    targets_N: torch.Tensor,
    *,
    at: float,
    rows: int,
    columns: int,
) -> Dual:
    """Log-probability of each target token and its tangent: dz_y - sum(p * dz) for logits z and the target y.

    Args:
        hidden_ND: last hidden state at the positions that predict the targets.
        head: the output layer; its weight is that at the start of the direction, its bias that at `at`.
        move: the direction of its weight.
        bias_tangent_V: the direction of its bias.
        targets_N: token ids.
        at: how far along the direction.
        rows, columns: tokens and words whose logits exist at one time.

    Returns:
        (N,), at least in float32.
    """
    target_N, target_tangent_N, mean_N = (
        torch.zeros(targets_N.shape, dtype=logps_dtype(head.weight.dtype), device=targets_N.device) for _ in range(3)
    )
    lse_N = torch.full_like(target_N, -torch.inf)
    for n, words, (z_nC, dz_nC) in tiles_of_logits(
        hidden_ND, head, move, bias_tangent_V, at=at, rows=rows, columns=columns
    ):
        target_N[n] = with_target(target_N[n], z_nC, targets_N[n], words)
        target_tangent_N[n] = with_target(target_tangent_N[n], dz_nC, targets_N[n], words)
        most_n1 = z_nC.amax(dim=-1, keepdim=True)
        shares_nC = (z_nC - most_n1).exp_()
        sum_n = shares_nC.sum(dim=-1)
        before_n, here_n = lse_N[n], most_n1.squeeze(-1) + sum_n.log()
        after_n = torch.logaddexp(before_n, here_n)
        mean_here_n = shares_nC.mul_(dz_nC).sum(dim=-1) / sum_n
        mean_N[n] = mean_N[n] * (before_n - after_n).exp() + mean_here_n * (here_n - after_n).exp()
        lse_N[n] = after_n
    return Dual(target_N - lse_N, target_tangent_N - mean_N)


class Tile(NamedTuple):
    """Logits of some tokens and some words, (n, C)."""

    tokens: slice
    words: slice
    logits: Dual


def tiles_of_logits(
    hidden_ND: Dual,
    head: LmHead,
    move: Move,
    bias_tangent_V: torch.Tensor | None,
    *,
    at: float,
    rows: int,
    columns: int,
) -> Iterator[Tile]:
    """All logits with their tangents, a tile at a time; arguments as in `tiled_token_logps`."""
    hidden_ND = Dual(hidden_ND.value.to(head.weight.dtype), hidden_ND.tangent.to(head.weight.dtype))
    for words in chunks(len(head.weight), columns):
        part_of_head = head._replace(weight=head.weight[words], bias=None if head.bias is None else head.bias[words])
        part_of_move = (
            Thin(move.down, move.up[words]) if isinstance(move, Thin) else None if move is None else move[words]
        )
        layer = moving_weight(part_of_head.weight, part_of_move, at)
        bias_tangent_C = None if bias_tangent_V is None else bias_tangent_V[words]
        for n in chunks(len(hidden_ND.value), rows):
            hidden_nD = Dual(hidden_ND.value[n], hidden_ND.tangent[n])
            yield Tile(n, words, _logits(hidden_nD, part_of_head, layer, bias_tangent_C))


def with_target(known_n: torch.Tensor, values_nC: torch.Tensor, targets_n: torch.Tensor, words: slice) -> torch.Tensor:
    """What is known of each token's target, with the value from this tile where the target is among its words."""
    is_here_n = (targets_n >= words.start) & (targets_n < words.stop)
    token_n1 = (targets_n - words.start).clamp(0, values_nC.shape[1] - 1)[:, None]
    return torch.where(is_here_n, values_nC.gather(-1, token_n1).squeeze(-1), known_n)


def _logits(hidden_nD: Dual, head: LmHead, layer: MovingWeight, bias_tangent_C: torch.Tensor | None) -> Dual:
    """Logits of some words, as `algo.logps.head_logits` makes them."""
    z_nC, dz_nC = map(at_least_fp32, moving_linear(hidden_nD, layer))
    if head.bias is not None:
        z_nC = z_nC + head.bias
    if bias_tangent_C is not None:
        dz_nC = dz_nC + bias_tangent_C
    if head.scale != 1.0:
        z_nC, dz_nC = z_nC * head.scale, dz_nC * head.scale
    if head.softcap is not None:
        z_nC = head.softcap * torch.tanh(z_nC / head.softcap)
        dz_nC = dz_nC * (1.0 - (z_nC / head.softcap) ** 2)
    return Dual(z_nC, dz_nC)
