"""The keys of some recipes, and the store of them beside the tests.

    python -m tests.kit.golden_keys    writes tests/unit/golden_keys.json

A key that moves makes users' finished stages stale: it may only do so on purpose, with the version of a kind.
"""

import json
from pathlib import Path

from spa_recipes.plan import compile_plan
from spa_recipes.recipe.load import load_recipe
from spa_recipes.state.digests import DigestMemo

ROOT = Path(__file__).parents[2]
STORE = ROOT / "tests" / "unit" / "golden_keys.json"
PAPERS = ("sampling.n=2", "judge.policy=previous", "refine.learning_rate=5e-5")
RECIPES = {"quickstart": PAPERS, "ultrafeedback_3p3_24gb": (), "zero_label": ()}
"""The sandbox, with the paper's settings; LoRA and data from the Hub; no labels and another reference."""


def golden_keys() -> dict[str, dict[str, str]]:
    """The key of every stage, by recipe and stage."""
    found = {}
    for name, settings in RECIPES.items():
        recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml", settings).recipe
        plan = compile_plan(recipe, DigestMemo(Path("nowhere/.digests.json")))
        found[name] = {stage.id: stage.key for stage in plan.stages}
    return found


if __name__ == "__main__":
    STORE.write_text(json.dumps(golden_keys(), indent=1) + "\n")
