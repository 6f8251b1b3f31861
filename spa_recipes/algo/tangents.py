"""Derivatives along a direction, in forward mode, of what has no usable rule in torch: attention and token log-probs.

A value `x` comes with its tangent `dx`, the derivative of `x` along the direction.
"""

import math
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


def part_of(move: Move, rows: slice) -> Move:
    """The direction of some rows of a weight."""
    if isinstance(move, Thin):
        return Thin(move.down, move.up[rows])
    return None if move is None else move[rows]


def moving_linear(x: Dual, weight: torch.Tensor, move: Move, at: float) -> Dual:
    """W(t) x and its tangent W(t) dx + M x, for W(t) = W + t*M: three products, or two and thin ones.

    W(t) exists for the time of a call. In half precision it is rounded to nearest: a weight that moved by one unit in
    the last place has nothing between its ends, and at the middle takes one of them, whichever is even.

    Args:
        x: (N, I), in the precision of the weight.
        weight: W, (O, I).
        move: M.
        at: t.

    Returns:
        (N, O), at least in float32.
    """
    if isinstance(move, Thin):
        down, down_tangent = linear(x.value, move.down), linear(x.tangent, move.down)
        moved, moved_tangent = (at_least_fp32(linear(part, move.up)) for part in (down, down_tangent))
        value = at_least_fp32(linear(x.value, weight)).add_(moved, alpha=at)
        tangent = at_least_fp32(linear(x.tangent, weight)).add_(moved).add_(moved_tangent, alpha=at)
        return Dual(value, tangent)
    if move is None:
        return Dual(at_least_fp32(linear(x.value, weight)), at_least_fp32(linear(x.tangent, weight)))
    there = torch.add(weight, move, alpha=at)
    tangent = at_least_fp32(linear(x.tangent, there)).add_(linear(x.value, move))
    return Dual(at_least_fp32(linear(x.value, there)), tangent)


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
        (B, H, T, E), at least in float32.
    """
    b, h, t, d = query.value.shape
    g, s = key.value.shape[1], key.value.shape[2]
    scale = 1.0 / math.sqrt(d) if scale is None else scale
    # The derivative of a product is a product of twice the length: dS = [dQ, Q] [K, dK]^T.
    keys_BGDS = key.value.transpose(-1, -2)[:, :, None]
    both_keys_BGDS = torch.cat((key.value, key.tangent), dim=-1).transpose(-1, -2)[:, :, None]
    values_BGSE, tangents_BGSE = value.value[:, :, None], value.tangent[:, :, None]
    dtype = logps_dtype(query.value.dtype)
    out, tangent = (query.value.new_empty(b, h, t, value.value.shape[-1], dtype=dtype) for _ in range(2))
    for place in chunks(t, block):
        seen = min(place.stop, s) if causal else s
        q = query.value[:, :, place].reshape(b, g, h // g, -1, d)
        dq = query.tangent[:, :, place].reshape(b, g, h // g, -1, d)
        scores = at_least_fp32(q @ keys_BGDS[..., :seen]).mul_(scale)
        moved = at_least_fp32(torch.cat((dq, q), dim=-1) @ both_keys_BGDS[..., :seen]).mul_(scale)
        if causal:
            rows = torch.arange(place.start, place.stop, device=scores.device)
            scores.masked_fill_(rows[:, None] < torch.arange(seen, device=scores.device), -torch.inf)
        if mask is not None:
            part = mask.expand(b, h, t, s)[:, :, place, :seen].reshape(scores.shape)
            if part.dtype == torch.bool:
                scores.masked_fill_(~part, -torch.inf)
            else:
                scores += part
        weights = torch.softmax(scores, dim=-1)
        moved.mul_(weights)
        moved.addcmul_(weights, moved.sum(dim=-1, keepdim=True), value=-1.0)
        low = weights.to(value.value.dtype)
        out[:, :, place] = (low @ values_BGSE[..., :seen, :]).reshape(b, h, -1, out.shape[-1])
        tangent[:, :, place] = (
            at_least_fp32(low @ tangents_BGSE[..., :seen, :])
            + (moved.to(value.value.dtype) @ values_BGSE[..., :seen, :])
        ).reshape(b, h, -1, out.shape[-1])
    return Dual(out, tangent)


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
    hidden_ND = Dual(hidden_ND.value.to(head.weight.dtype), hidden_ND.tangent.to(head.weight.dtype))
    logps_N = torch.empty(targets_N.shape, dtype=logps_dtype(head.weight.dtype), device=targets_N.device)
    tangents_N = torch.empty_like(logps_N)
    for place in chunks(len(targets_N), rows):
        part = Dual(hidden_ND.value[place], hidden_ND.tangent[place])
        target_n = Dual(torch.zeros_like(logps_N[place]), torch.zeros_like(logps_N[place]))
        lse_n, mean_n = torch.full_like(target_n.value, -torch.inf), torch.zeros_like(target_n.value)
        for tile in chunks(len(head.weight), columns):
            z_nC, dz_nC = _logits(part, head, move, bias_tangent_V, at, tile)
            is_here_n = (targets_N[place] >= tile.start) & (targets_N[place] < tile.stop)
            token_n1 = (targets_N[place] - tile.start).clamp(0, z_nC.shape[1] - 1)[:, None]
            target_n = Dual(
                *(
                    torch.where(is_here_n, of_tile_nC.gather(-1, token_n1).squeeze(-1), so_far_n)
                    for of_tile_nC, so_far_n in zip((z_nC, dz_nC), target_n, strict=True)
                )
            )
            most_n1 = z_nC.amax(dim=-1, keepdim=True)
            shares_nC = (z_nC - most_n1).exp_()
            sum_n = shares_nC.sum(dim=-1)
            before_n, tile_lse_n = lse_n, most_n1.squeeze(-1) + sum_n.log()
            lse_n = torch.logaddexp(before_n, tile_lse_n)
            tile_mean_n = shares_nC.mul_(dz_nC).sum(dim=-1) / sum_n
            mean_n = mean_n * (before_n - lse_n).exp() + tile_mean_n * (tile_lse_n - lse_n).exp()
        logps_N[place], tangents_N[place] = target_n.value - lse_n, target_n.tangent - mean_n
    return Dual(logps_N, tangents_N)


def _logits(
    hidden_nD: Dual, head: LmHead, move: Move, bias_tangent_V: torch.Tensor | None, at: float, tile: slice
) -> Dual:
    """Logits of the words of a tile, as `algo.logps.head_logits` makes them."""
    z_nC, dz_nC = moving_linear(hidden_nD, head.weight[tile], part_of(move, tile), at)
    if head.bias is not None:
        z_nC = z_nC + head.bias[tile]
    if bias_tangent_V is not None:
        dz_nC = dz_nC + bias_tangent_V[tile]
    if head.scale != 1.0:
        z_nC, dz_nC = z_nC * head.scale, dz_nC * head.scale
    if head.softcap is not None:
        z_nC = head.softcap * torch.tanh(z_nC / head.softcap)
        dz_nC = dz_nC * (1.0 - (z_nC / head.softcap) ** 2)
    return Dual(z_nC, dz_nC)
