"""The package's stochastic rounding and tangent, held against the plain ones of `plain`."""

from collections.abc import Sequence

import torch

from spa_recipes.generation.scoring import Scored
from spa_recipes.models import rounding
from tests.benchmarks.precision.kept import digest
from tests.benchmarks.precision.passes import TRUTH, Passes, Way
from tests.benchmarks.precision.plain import stochastic_bfloat16, tangent
from tests.benchmarks.precision.policies import Policy, World

CHECKED = 8
"""Answers whose tangent is computed a second time."""


def rounding_figures(world: World, passes: Passes, policy: Policy) -> dict[str, float]:
    """What plain stochastic rounding keeps of an update: to be like `Passes.update` of the package's."""

    def figures() -> dict[str, float]:
        generator = torch.Generator().manual_seed(0)
        update = rounding.Update()
        base = dict(passes.model(None, TRUTH.saved, torch.float32).named_parameters())
        for name, weight in passes.model(policy, TRUTH.saved, torch.float32).named_parameters():
            update.add(base[name], weight, stochastic_bfloat16(weight, generator).bfloat16())
        return update.figures()

    found: dict[str, float] = world.kept.get("plain-updates", {"policy": policy.key}, figures)
    return found


def tangents(world: World, passes: Passes, policy: Policy, way: Way, items: Sequence[Scored]) -> list[float]:
    """Log-ratios of the first items by the plain tangent, in float32, of the policy that `way` stores."""

    def plain() -> list[float]:
        models = (passes.model(policy, way.saved, torch.float32), passes.model(None, TRUTH.saved, torch.float32))
        return [tangent(*models, item) for item in items[:CHECKED]]

    made_by = {"policy": policy.key, "saved": way.saved, "items": digest([list(item) for item in items[:CHECKED]])}
    found: list[float] = world.kept.get("plain-tangents", made_by, plain)
    return found
