"""Stochastic rounding and the tangent once more, as plainly as can be: what the package's own are held against."""

import torch
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from spa_recipes.generation.scoring import Scored


def stochastic_bfloat16(weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each weight becomes one of its two neighbours in bfloat16, with the mean that it has itself; in float32."""
    bits = weight.detach().float().contiguous().view(torch.int32)
    below = bits & ~0xFFFF  # toward zero
    above = below + 0x10000
    cut_off = (bits & 0xFFFF).double() / 0x10000
    goes_up = torch.rand(weight.shape, generator=generator, dtype=torch.float64) < cut_off
    return torch.where(goes_up, above, below).view(torch.float32)


def tangent(policy: PreTrainedModel, reference: PreTrainedModel, item: Scored) -> float:
    """log pi(y|x) - log pi_ref(y|x) in nats: the derivative at the middle of the way between two float32 models.

    In float32, through the whole model, with attention written out.
    """
    start = {name: weight.detach() for name, weight in reference.named_parameters()}
    way = {name: weight.detach() - start[name] for name, weight in policy.named_parameters()}
    middle = {name: start[name] + 0.5 * way[name] for name in start}
    ids = torch.tensor([item.prompt_ids + item.response_ids])
    first = len(item.prompt_ids)

    def logp(weights: dict[str, torch.Tensor]) -> torch.Tensor:
        logits = functional_call(reference, weights, kwargs={"input_ids": ids, "use_cache": False}).logits[0]
        logps_T: torch.Tensor = logits[first - 1 : -1].log_softmax(-1).gather(-1, ids[0, first:, None])
        return logps_T.sum()

    with sdpa_kernel(SDPBackend.MATH):
        derivative = jvp(logp, (middle,), (way,))[1]
    return float(derivative)
