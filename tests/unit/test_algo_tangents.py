"""Tangents against torch's own forward mode through plain formulas, and against differences of what is linear."""

from typing import Any

import pytest
import torch
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import linear, log_softmax, scaled_dot_product_attention

from spa_recipes.algo.logps import LmHead
from spa_recipes.algo.tangents import Dual, Thin, attention, moving_linear, moving_weight, tiled_token_logps


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("seen", ["all", "causal", "true and false", "added"])
@pytest.mark.parametrize("block", [1, 3, 64])
def test_attention_is_that_of_the_formula(seen: str, block: int) -> None:
    torch.manual_seed(0)
    values, tangents = ([randn(2, 4, 7, 5), randn(2, 2, 7, 5), randn(2, 2, 7, 3)] for _ in range(2))
    some = torch.rand(2, 1, 7, 7) > 0.3
    mask = {"true and false": some | torch.eye(7, dtype=torch.bool), "added": randn(2, 4, 7, 7)}.get(seen)

    def formula(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return scaled_dot_product_attention(q, k, v, mask, is_causal=seen == "causal", scale=0.4, enable_gqa=True)

    with sdpa_kernel(SDPBackend.MATH):
        expected = jvp(formula, tuple(values), tuple(tangents))
    states = map(Dual, values, tangents)
    found = attention(*states, mask=mask, causal=seen == "causal", scale=0.4, block=block)
    torch.testing.assert_close(tuple(found), expected, rtol=0, atol=1e-12)


def test_the_scale_of_attention_is_that_of_torch() -> None:
    torch.manual_seed(0)
    q, k, v = (randn(1, 2, 5, 9) for _ in range(3))
    found = attention(*(Dual(state, torch.zeros_like(state)) for state in (q, k, v)))
    torch.testing.assert_close(found.value, scaled_dot_product_attention(q, k, v), rtol=0, atol=1e-12)


def test_the_tangent_of_a_linear_layer_is_the_whole_difference() -> None:
    """Exact for any update: a linear function's derivative is its difference."""
    torch.manual_seed(0)
    x, weight, move = randn(3, 4), randn(6, 4), 100 * randn(6, 4)
    found = moving_linear(Dual(x, torch.zeros_like(x)), moving_weight(weight, move, 0.5))
    torch.testing.assert_close(found.tangent, linear(x, weight + move) - linear(x, weight), rtol=1e-12, atol=1e-11)
    torch.testing.assert_close(found.value, linear(x, weight + 0.5 * move))


@pytest.mark.parametrize("at", [0.0, 0.5, 0.8])
def test_a_thin_direction_is_the_dense_one(at: float) -> None:
    torch.manual_seed(0)
    x, weight, thin = Dual(randn(3, 4), randn(3, 4)), randn(6, 4), Thin(randn(2, 4), randn(6, 2))
    expected = moving_linear(x, moving_weight(weight, thin.up @ thin.down, at))
    torch.testing.assert_close(tuple(moving_linear(x, moving_weight(weight, thin, at))), tuple(expected))


@pytest.mark.parametrize("columns", [1, 4, 11, 20])
@pytest.mark.parametrize("form", ["plain", "bias", "thin", "still", "scale", "softcap"])
def test_token_logps_are_those_of_whole_logits(columns: int, form: str) -> None:
    torch.manual_seed(0)
    hidden, hidden_tangent, weight, bias = randn(5, 4), randn(5, 4), randn(11, 4), randn(11)
    move: Any = {"thin": Thin(randn(2, 4), randn(11, 2)), "still": None}.get(form, randn(11, 4))
    dense = torch.zeros_like(weight) if move is None else move.up @ move.down if form == "thin" else move
    bias_tangent = randn(11) if form == "bias" else None
    targets = torch.tensor([0, 3, 10, 7, 7])
    scale, softcap = 0.3 if form == "scale" else 1.0, 2.0 if form == "softcap" else None

    def formula(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        logits = (linear(hidden, weight) + (bias if form == "bias" else 0)) * scale
        logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
        return log_softmax(logits, dim=-1).gather(-1, targets[:, None]).squeeze(-1)

    at = 0.5
    there = (hidden, weight + at * dense, bias)
    tangents = (hidden_tangent, dense, torch.zeros_like(bias) if bias_tangent is None else bias_tangent)
    expected = jvp(formula, there, tangents)
    head = LmHead(weight, bias if form == "bias" else None, scale, softcap)
    found = tiled_token_logps(
        Dual(hidden, hidden_tangent), head, move, bias_tangent, targets, at=at, rows=2, columns=columns
    )
    torch.testing.assert_close(tuple(found), expected, rtol=0, atol=1e-12)
