"""Plans of recipes."""

from pathlib import Path
from typing import Any

from spa_recipes.plan import Plan, compile_plan
from spa_recipes.recipe.schema import Recipe
from spa_recipes.state.digests import DigestMemo
from tests.kit.recipes import merged, mini


def plan_of(**changes: Any) -> Plan:
    """The plan of the miniature recipe with changes."""
    return plan_of_recipe(mini(**changes))


def plan_of_recipe(recipe: dict[str, Any]) -> Plan:
    """The plan of a recipe."""
    return compile_plan(Recipe.model_validate(recipe), DigestMemo(Path("nowhere/.digests.json")))


def vllm_plan(**changes: Any) -> Plan:
    """The plan of the miniature recipe with one iteration, sampled by vLLM, with changes."""
    recipe = mini(data={"prompts_per_iteration": [8]})
    recipe["sampling"]["backend"] = {"type": "vllm"}
    return plan_of_recipe(merged(recipe, changes))
