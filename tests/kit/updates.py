"""Models that are an update away from another one."""

import copy
from collections.abc import Mapping

import torch
from transformers import PreTrainedModel


def random_update(model: PreTrainedModel, size: float, seed: int = 1) -> dict[str, torch.Tensor]:
    """A direction for every parameter, `size` times its root mean square."""
    generator = torch.Generator().manual_seed(seed)

    def direction(weight: torch.Tensor) -> torch.Tensor:
        length = size * weight.double().square().mean().sqrt()
        return length * torch.randn(weight.shape, generator=generator).double()

    return {name: direction(weight.detach()) for name, weight in model.named_parameters()}


@torch.no_grad()
def moved(model: PreTrainedModel, update: Mapping[str, torch.Tensor], at: float = 1.0) -> PreTrainedModel:
    """A copy of a model, so far along an update."""
    there = copy.deepcopy(model)
    for name, weight in there.named_parameters():
        if name in update:
            weight.copy_(weight.double() + at * update[name])
    return there


@torch.no_grad()
def stored_stochastically(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """A copy in bfloat16, each weight rounded up with a probability equal to the fraction that is cut off."""
    generator = torch.Generator().manual_seed(seed)
    stored = copy.deepcopy(model).bfloat16()
    for weight, exact in zip(stored.parameters(), model.parameters(), strict=True):
        bits = exact.float().view(torch.int32) + torch.randint(0, 1 << 16, exact.shape, generator=generator)
        weight.copy_((bits & -(1 << 16)).int().view(torch.float32))
    return stored
