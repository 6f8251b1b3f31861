"""Weights further along the way from one model to another: a control for what training on one's own labels adds."""

from functools import partial

import torch
from transformers import PreTrainedModel

from spa_recipes.errors import StageError
from spa_recipes.models.saving import Weights


def extrapolated(policy: PreTrainedModel, init: PreTrainedModel, factor: float) -> Weights:
    """W + factor*(W - W_init) for every weight W of the policy, each made when it is needed; factor 0 gives W itself.

    With soft labels, equal betas and exact optimisation, an iteration of SPA does no more than this to log-probs.

    Args:
        policy, init: of one architecture, in float32.

    Raises:
        StageError: names or shapes of weights differ.
    """
    tensors, start = policy.state_dict(), init.state_dict()
    for name in sorted(tensors.keys() | start.keys()):
        if name not in tensors or name not in start or tensors[name].shape != start[name].shape:
            raise StageError(
                f"policy and pi_init differ in {name}: weights can be extrapolated between two models of one "
                "architecture only",
                where="final.extrapolate",
                fix="remove it",
            )

    def further(name: str) -> torch.Tensor:
        moved: torch.Tensor = tensors[name] + factor * (tensors[name] - start[name])
        return moved

    moving = [name for name, tensor in tensors.items() if factor and tensor.is_floating_point()]
    return Weights(tensors, {name: partial(further, name) for name in moving})
