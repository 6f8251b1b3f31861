"""What `spa validate` prints: a line for each recipe, or one for each thing that is wrong with it or its local data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from spa_recipes.cli.terminal import print_errors, say
from spa_recipes.data.places import local_path
from spa_recipes.errors import DataError, RecipeError, SpaError, setting
from spa_recipes.recipe.load import load_recipe
from spa_recipes.recipe.schema import DatasetSource, Recipe


def validate_recipes(paths: Sequence[Path], overrides: Sequence[str]) -> int:
    """Check recipes and the beginning of the local data that they name; returns the exit code."""
    code = 0
    for path in paths:
        try:
            recipe = load_recipe(path, overrides).recipe
        except RecipeError as error:
            print_errors(error)
            code = RecipeError.exit_code
            continue
        if faults := list(_faults(recipe)):
            for fault in faults:
                print_errors(fault)
            code = code or DataError.exit_code
        else:
            say(f"{path}: ok ({recipe.name}, {recipe.iterations} iterations)")
    return code


def _faults(recipe: Recipe) -> Iterator[SpaError]:
    """What is wrong with local data as a whole: that it is missing, of a kind that is not read, or of no known form."""
    named = {
        "data.pairs.source": recipe.data.pairs,
        "data.prompts.source": recipe.data.prompts,
        "sft.data.source": recipe.sft.data if recipe.sft is not None else None,
    }
    local = {
        key: source
        for key, source in named.items()
        if isinstance(source, DatasetSource) and local_path(source.source) is not None
    }
    if not local:
        return
    from spa_recipes.data import sources  # takes a while, which a recipe without local data need not wait for

    uses = dict(zip(named, (sources.PAIRS, sources.PROMPTS, sources.CONVERSATIONS), strict=True))
    for key, source in local.items():
        try:
            with setting(key):
                sources.look(source, uses[key])
        except SpaError as error:
            yield error
