"""Adapters as inputs of stages: where policies are sampled, trained or scored as weights with adapters on them.

With QLoRA these weights are in 4 bits and pi_init's in every iteration: quantizing a model that was trained further
would lose much of what it learned. A stage that trains an adapter keeps it as the whole stack of those since pi_init.
"""

from spa_recipes.plan.kinds import ADAPTER, KINDS
from spa_recipes.plan.stages import Builder, External, Input, StageOutput
from spa_recipes.recipe.schema import Recipe


def sampled_with(recipe: Recipe, build: Builder, policy: Input) -> dict[str, Input]:
    """The adapter of a policy and the weights below it, where the recipe samples from these instead of their sum."""
    backend = recipe.sampling.backend
    if backend.type != "vllm" or backend.lora != "adapter" or isinstance(policy, External):
        return {}
    if not _has_adapter(build, policy):
        return {}
    below = build.stages[policy.stage].inputs
    return {"adapter": StageOutput(policy.stage, ADAPTER), "base": below.get("base", below["policy"])}


def trained_on(recipe: Recipe, build: Builder, policy: Input, init: Input) -> dict[str, Input]:
    """What QLoRA trains on instead of the policy: pi_init's weights, and the stack on them that is the policy."""
    return {"base": init, **stack("adapter", recipe, build, policy, init)} if recipe.model.in_4bit else {}


def stack(role: str, recipe: Recipe, build: Builder, policy: Input, init: Input) -> dict[str, Input]:
    """With QLoRA, the adapters on pi_init's weights that are a policy, as the input `role`.

    pi_init has none, and neither has a model from outside or one that is made of weights.
    """
    if not recipe.model.in_4bit or policy == init or isinstance(policy, External) or not _has_adapter(build, policy):
        return {}
    return {role: StageOutput(policy.stage, ADAPTER)}


def _has_adapter(build: Builder, policy: StageOutput) -> bool:
    return KINDS[build.stages[policy.stage].kind].has_output(ADAPTER)
