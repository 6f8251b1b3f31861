"""The output layer of a causal language model as a matrix, checked against the model itself."""

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from transformers import PreTrainedModel

from spa_recipes.algo.logps import LmHead, head_logits, logit_rules
from spa_recipes.models.causal import TOLERANCE


@torch.inference_mode()
def checked_lm_head(model: PreTrainedModel, token_ids: list[int]) -> LmHead | None:
    """The model's output layer, or None where it is not one matrix with the known rules.

    Args:
        model: a causal language model in evaluation mode.
        token_ids: a text on which hidden states times matrix must give the model's own logits.
    """
    layer = model.get_output_embeddings()
    if not isinstance(layer, torch.nn.Linear) or model.base_model is model:  # some have no name for their backbone
        return None
    head = LmHead(layer.weight, layer.bias, *logit_rules(model.config.get_text_config()))
    input_ids = torch.tensor([token_ids[-16:]], device=model.device)
    hidden_TD = hidden_states(model, input_ids)[0]
    if hidden_TD.shape[-1] != head.weight.shape[-1]:
        return None
    ours_TV = head_logits(hidden_TD.to(head.weight.dtype), head)
    theirs_TV = model(input_ids=input_ids, use_cache=False).logits[0].to(ours_TV.dtype)
    off = (ours_TV - theirs_TV).abs().max()
    return head if bool(off <= TOLERANCE[head.weight.dtype] * theirs_TV.abs().max()) else None


def hidden_states(model: PreTrainedModel, input_ids_BT: torch.Tensor, positions_BT: torch.Tensor | None = None) -> Any:
    """Last hidden states (B, T, D), before the output layer; padding stands on the right, where no token looks."""
    positions = {} if positions_BT is None else {"position_ids": positions_BT}
    return model.base_model(input_ids=input_ids_BT, use_cache=False, **positions).last_hidden_state


def logits_at(model: PreTrainedModel, positions: int | torch.Tensor, **inputs: Any) -> Any:
    """The model's own output with logits only at `positions` (1-d), or at that many last ones, where it can do that.

    Returns:
        The output; its logits are (B, number of positions, V).
    """
    if _keeps_logits(type(model).forward):
        return model(**inputs, logits_to_keep=positions)
    output = model(**inputs)
    output.logits = output.logits[:, -positions:] if isinstance(positions, int) else output.logits[:, positions]
    return output


@cache
def _keeps_logits(forward: Callable[..., Any]) -> bool:
    return "logits_to_keep" in inspect.signature(forward).parameters
