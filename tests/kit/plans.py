"""Plans of recipes."""

from pathlib import Path
from typing import Any

from spa_recipes.plan import Plan, compile_plan
from spa_recipes.recipe.schema import Recipe
from spa_recipes.state.digests import DigestMemo
from tests.kit.recipes import mini


def plan_of(**changes: Any) -> Plan:
    """The plan of the miniature recipe with changes."""
    return plan_of_recipe(mini(**changes))


def plan_of_recipe(recipe: dict[str, Any]) -> Plan:
    """The plan of a recipe."""
    return compile_plan(Recipe.model_validate(recipe), DigestMemo(Path("nowhere/.digests.json")))
