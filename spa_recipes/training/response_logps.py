"""Log-probs of responses computed inside a model's own forward pass.

The output layer is read directly, in chunks, instead of being called. That has to happen inside `model(...)`: there,
and only there, wrappers have what they need: DDP's reducer is armed by the forward of the wrapped model, FSDP and
DeepSpeed have the sharded weights together. TRL's `add_fused_lm_head` works the same way.
"""

import types
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel
from trl.trainer.utils import maybe_gather_lm_head_ctx

from spa_recipes.algo.decoupled import DecoupledLogps, chunked_decoupled_logps
from spa_recipes.algo.logps import LmHead, chunked_token_logps, logit_rules, sequence_logps
from spa_recipes.errors import DataError
from spa_recipes.training.sharding import shards_weights, whole

IGNORED = -100
"""Label of a token that is not scored."""


class Reference(NamedTuple):
    """What the policy's forward pass needs from the reference for de-coupled detection; `hidden` is (N, D)."""

    hidden: torch.Tensor
    head: LmHead
    lam: float


def add_response_logps(model: PreTrainedModel) -> Callable[[], LmHead]:
    """Teach `model(...)` the argument `response_labels`, (B, T), the token ids with `IGNORED` where nothing is scored.

    With it the forward pass returns logps_B of the responses; with `reference` a `DecoupledLogps` of (B,) tensors;
    with `hidden_only=True` hidden_ND, the states that predict the response tokens. Without it the forward pass is the
    original one. Call this before the model is wrapped in anything.

    Batches are padded on the right and go without an attention mask: attention is causal, so no token of a sequence
    sees the padding behind it, and without a mask the fastest attention kernels apply. With `alone=True` the texts of
    a batch are read one by one and without padding, for models that look at the length of what they read.

    Returns:
        A function that gives the output layer as the last pass with `hidden_only=True` saw it, whole; for a model
        that is not trained.
    """
    original_forward = model.forward
    scale, softcap = logit_rules(model.config.get_text_config())
    seen: list[LmHead] = []

    def forward(
        self: PreTrainedModel,
        *args: Any,
        response_labels: torch.Tensor | None = None,
        reference: Reference | None = None,
        hidden_only: bool = False,
        by_token: bool = False,
        alone: bool = False,
        **kwargs: Any,
    ) -> Any:
        if response_labels is None:
            return original_forward(*args, **kwargs)
        hidden_ND = scored_states(self.base_model, kwargs["input_ids"], response_labels, alone=alone)
        scored_BT = response_labels[:, 1:] != IGNORED
        targets_N = response_labels[:, 1:][scored_BT]
        layer = self.get_output_embeddings()
        if hidden_only:
            if not seen:
                seen.append(_whole_head(layer, scale, softcap))
            return hidden_ND
        weight, bias = _weight_and_bias(layer)

        def gather() -> Any:
            return maybe_gather_lm_head_ctx(weight, bias)

        if reference is None:
            logps_N = chunked_token_logps(
                hidden_ND, weight, targets_N, bias, scale=scale, softcap=softcap, gather_head=gather
            )
            return _per_token(logps_N, scored_BT) if by_token else _per_sequence(logps_N, scored_BT)
        logps = chunked_decoupled_logps(
            hidden_ND,
            LmHead(weight, bias, scale, softcap),
            reference.hidden,
            reference.head,
            targets_N,
            reference.lam,
            gather_head=gather,
        )
        placed = _per_token if by_token else _per_sequence
        return DecoupledLogps(*(placed(logps_N, scored_BT) for logps_N in logps))

    model.forward = types.MethodType(forward, model)
    return lambda: seen[0]


def scored_states(
    body: torch.nn.Module, input_ids_BT: torch.Tensor, response_labels_BT: torch.Tensor, *, alone: bool
) -> torch.Tensor:
    """The hidden states (N, D) that predict the scored tokens of a batch; arguments as in `add_response_logps`."""
    if alone:
        places_T = torch.arange(input_ids_BT.shape[1], device=input_ids_BT.device)
        ends = (1 + (places_T * (response_labels_BT != IGNORED)).amax(dim=1)).tolist()
        texts = [(input_ids_BT[i : i + 1, :end], response_labels_BT[i : i + 1, :end]) for i, end in enumerate(ends)]
        return torch.cat([scored_states(body, *text, alone=False) for text in texts])
    states_BTD = body(input_ids=input_ids_BT, use_cache=False).last_hidden_state
    hidden_ND: torch.Tensor = states_BTD[:, :-1][response_labels_BT[:, 1:] != IGNORED]
    return hidden_ND


def check_response_logps(model: PreTrainedModel, token_ids: list[int], tolerance: float) -> None:
    """Compare with the model's own logits on a text; `tolerance` is a share of its log-prob.

    Raises:
        DataError: they differ, so the architecture changes its logits in a way that is unknown here.
    """
    ids_1T = torch.tensor([token_ids], device=model.device)
    mask_1T = torch.ones_like(ids_1T)
    mask_1T[:, 0] = 0
    with torch.no_grad():
        theirs_1 = sequence_logps(model(input_ids=ids_1T, use_cache=False).logits, ids_1T, mask_1T)
        ours_1 = model(input_ids=ids_1T, response_labels=ids_1T)
    if not torch.allclose(ours_1, theirs_1, rtol=tolerance, atol=tolerance):
        raise DataError(
            f"log-probs read from the output layer of {model.config.model_type} ({ours_1.item():.6g}) are not those "
            f"of its own logits ({theirs_1.item():.6g})",
            fix="this architecture cannot be trained here; please report it",
        )


def _per_sequence(logps_N: torch.Tensor, scored_BT: torch.Tensor) -> torch.Tensor:
    """Sums over the scored tokens of each sequence."""
    return _per_token(logps_N, scored_BT).sum(dim=1)


def _per_token(logps_N: torch.Tensor, scored_BT: torch.Tensor) -> torch.Tensor:
    """The log-prob of each scored token in its place, and 0 elsewhere; `masked_scatter` keeps the graph without any."""
    return logps_N.new_zeros(scored_BT.shape).masked_scatter(scored_BT, logps_N)


def _weight_and_bias(layer: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The parameters of the output layer."""
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, torch.Tensor)
    assert bias is None or isinstance(bias, torch.Tensor)
    return whole(weight), None if bias is None else whole(bias)


def _whole_head(layer: torch.nn.Module, scale: float, softcap: float | None) -> LmHead:
    """The output layer of a frozen model, copied where the weights are sharded and will vanish after the forward."""
    with torch.no_grad(), maybe_gather_lm_head_ctx(layer.weight, layer.bias):
        weight, bias = _weight_and_bias(layer)
        if shards_weights():
            weight, bias = weight.clone(), None if bias is None else bias.clone()
        return LmHead(weight.detach(), None if bias is None else bias.detach(), scale, softcap)
