"""log pi(y|x) - log pi_ref(y|x) as an integral of derivatives, where a difference of two passes would be noise.

With W(t) = W_ref + t*(W - W_ref), log pi(y|x) - log pi_ref(y|x) is the integral over t in [0, 1] of the derivative of
log pi(y|x; W(t)). Two log-probs of hundreds of nats each have an error of about a nat in half precision; a derivative
has one of a few thousandths of itself.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch.autograd import forward_ad
from transformers import PreTrainedModel

from spa_recipes.algo.logps import CHUNK_SIZE, LmHead
from spa_recipes.algo.tangents import tiled_token_logps
from spa_recipes.generation.engines import Progress
from spa_recipes.generation.scoring import CPU_WORDS, Rule, Scored, Values, score
from spa_recipes.models.forward_mode import (
    Moving,
    NoForwardModeError,
    derivatives,
    make_dual,
    no_tangent,
    one_expert_at_a_time,
    own_rules,
    unpack,
)
from spa_recipes.models.products import fast_products
from spa_recipes.models.update import Update, difference

__all__ = ["LogRatio", "NoForwardModeError", "sequence_log_ratios"]

NODES: dict[int, tuple[float, ...]] = {1: (0.5,), 2: (0.5 - 12**-0.5, 0.5 + 12**-0.5)}
"""Places of the Gauss-Legendre rules with equal weights: the midpoint, and two nodes."""

CPU_TOKENS = 256
"""Tokens whose logits exist at one time on a CPU, in several tensors: more of them do not fit its caches."""


class LogRatio(NamedTuple):
    """What a response's labels are made of.

    Attributes:
        log_ratio: log pi(y|x) - log pi_ref(y|x), in nats.
        logp: log-prob of the response between the two models, in the model's precision; labels are not made of it.
    """

    log_ratio: float
    logp: float


def sequence_log_ratios(
    policy: PreTrainedModel | Update,
    reference: PreTrainedModel,
    items: Sequence[Scored],
    *,
    nodes: Literal[1, 2] = 1,
    tokens_per_batch: int,
    onednn_products: bool = True,
    on_progress: Progress | None = None,
    first_item: int = 0,
) -> list[LogRatio]:
    """log pi(y|x) - log pi_ref(y|x) of each item, in the order of the items, by forward-mode derivatives.

    Products run in the precision of the reference's weights, all else in float32 at least. Packed and batched as
    `scoring.sequence_logps`; a result does not depend on the other items, beyond rounding.

    Args:
        policy: pi, or what its weights differ by from the reference's, which takes less memory.
        reference: pi_ref, in evaluation mode.
        items: prompts and responses as token ids.
        nodes: 1 is the midpoint, with an error of the third order in the update; 2 are Gauss's, with one of the fifth
            order, for twice the time. In half precision the weights between are rounded, and no order holds.
        tokens_per_batch, onednn_products, on_progress, first_item: as in `scoring.sequence_logps`.

    Raises:
        ValueError: an item has an empty prompt or response.
        NoForwardModeError: an operation of the model has no derivative in forward mode; raised by the first pass.
        StageError: the two models do not fit each other or are equal, or a result is NaN, infinite or exactly 0.
    """
    update = policy if isinstance(policy, Update) else difference(policy, reference)
    shares: list[list[Values]] = []
    for node in NODES[nodes]:
        progress = None if on_progress is None else partial(_over_nodes, on_progress, len(shares) * len(items), nodes)
        with forward_ad.dual_level(), one_expert_at_a_time(reference):
            rule = _rule(reference, update, node, onednn_products)
            shares.append(score(reference, items, rule, tokens_per_batch, progress, first_item))
    ratios = [
        LogRatio(sum(ratio for _, ratio in values) / nodes, sum(logp for logp, _ in values) / nodes)
        for values in zip(*shares, strict=True)
    ]
    for i, (ratio, _) in enumerate(ratios):
        if ratio == 0.0:
            raise no_tangent(f"of item {first_item + i} is exactly 0")
    return ratios


def _over_nodes(report: Progress, before: int, nodes: int, done: int, tokens: int) -> None:
    """Report progress of one node as progress over all: an item is done when it is at all of them."""
    report((before + done) // nodes, tokens)


def _rule(reference: PreTrainedModel, update: Update, at: float, onednn_products: bool) -> Rule:
    """The pass that gives log-probs at one place along the update, and their derivatives."""
    moving = Moving(reference, update.moves, at / update.scale)

    @contextmanager
    def within() -> Iterator[None]:
        fast = fast_products(reference.device) if onednn_products else nullcontext()
        with fast, derivatives(moving):
            yield

    def token_logps(hidden_ND: torch.Tensor, head: LmHead, targets_N: torch.Tensor) -> torch.Tensor:
        hidden = moving.hidden(hidden_ND, head)
        on_cpu = hidden_ND.device.type == "cpu"
        rows, columns = (CPU_TOKENS, CPU_WORDS) if on_cpu else (CHUNK_SIZE, len(head.weight))
        layer = moving.head(head)
        with own_rules():
            logps_N = tiled_token_logps(hidden, *layer, targets_N, at=moving.at, rows=rows, columns=columns)
        return make_dual(*logps_N)

    def read(sums_B: torch.Tensor) -> list[Values]:
        logps_B, tangents_B = unpack(sums_B)
        if tangents_B is None:
            raise no_tangent("of the log-probs is missing")
        return list(zip(logps_B.tolist(), (tangents_B / update.scale).tolist(), strict=True))

    return Rule(within, token_logps, read)
