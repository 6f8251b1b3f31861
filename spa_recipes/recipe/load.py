"""Reads a recipe: YAML with positions, `--set` overrides, and one readable line for each thing that is wrong.

`text` reads YAML, `extends` merges a recipe with the one that it builds on, `schema` and `rules` check the values, and
`problems` explains errors. Relative paths in a recipe (models, data files) start at the current folder, as on a command
line.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from spa_recipes.errors import RecipeError
from spa_recipes.recipe.extends import EXTENDS, read_values
from spa_recipes.recipe.problems import MAX_PROBLEMS, InvalidRecipeError, explain
from spa_recipes.recipe.schema import Recipe
from spa_recipes.recipe.shipped import find_recipe
from spa_recipes.recipe.text import MAX_BYTES, MAX_DEPTH, MAX_NODES, Keys, Place, Values, dotted, parse

__all__ = [
    "MAX_BYTES",
    "MAX_DEPTH",
    "MAX_NODES",
    "MAX_PROBLEMS",
    "InvalidRecipeError",
    "Keys",
    "LoadedRecipe",
    "Setting",
    "changed",
    "load_recipe",
    "recipe_schema",
    "resolved",
]


class LoadedRecipe(NamedTuple):
    """A checked recipe, and the file it came from."""

    recipe: Recipe
    path: Path
    text: str


class Setting(NamedTuple):
    """A value for a dotted key of a recipe, and the place where it is given."""

    key: str
    given: Values
    place: Place


def load_recipe(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    settings: Sequence[Setting] = (),
    then: Callable[[dict[str, Any]], Sequence[Setting]] = lambda root: (),
) -> LoadedRecipe:
    """Read and check a recipe file.

    Args:
        path: the YAML file, or the name of a shipped recipe.
        overrides: `key=value` texts as of `--set`, applied in order: the key is a dotted path (`noise.alpha`,
            `noise.lambdas.0`), the value a YAML scalar or flow collection. A section that the recipe leaves out is
            created. `judge.type=gold` changes that key only; `judge={type: gold}` replaces the whole section.
        settings: the same from another file, after these; `then` gives further ones for a recipe with all of these.

    Raises:
        RecipeError: the file cannot be read as a recipe.
        InvalidRecipeError: values are wrong. It is about the first problem, its `others` about the remaining ones.
    """
    path = find_recipe(path)
    values, text = read_values(path)
    override(values, overrides)
    put_settings(values, settings)
    put_settings(values, then(values.root))
    try:
        return LoadedRecipe(Recipe.model_validate(values.root), path, text)
    except ValidationError as error:
        raise explain(error, values, path, Recipe) from None


def changed(recipe: Recipe, overrides: Sequence[str], path: Path) -> Recipe:
    """A recipe that was read before, with `key=value` texts as of `--set` applied to it.

    Args:
        recipe: as `resolved` at `path`, which errors name.
        overrides: as of `load_recipe`.

    Raises:
        RecipeError, InvalidRecipeError: as `load_recipe`.
    """
    if not overrides:
        return recipe
    values = parse(json.dumps(resolved(recipe)), lambda _: Place(str(path), 0))
    override(values, overrides)
    try:
        return Recipe.model_validate(values.root)
    except ValidationError as error:
        raise explain(error, values, path, Recipe) from None


def resolved(recipe: Recipe) -> dict[str, Any]:
    """The recipe with all defaults filled in, ready for JSON."""
    return recipe.model_dump(mode="json")


def recipe_schema() -> dict[str, Any]:
    """The JSON Schema of recipes (draft 2020-12), for editors."""
    schema = Recipe.model_json_schema()
    extends = {"type": "string", "minLength": 1, "description": "Recipe to build on, relative to this file."}
    whole, built_on = {"required": schema.pop("required")}, {"required": ["name", EXTENDS]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "spa-recipes recipe",
        "properties": {EXTENDS: extends, **schema["properties"]},
        "anyOf": [whole, built_on],
    }


def override(values: Values, overrides: Sequence[str]) -> None:
    """Apply `key=value` texts as of `--set`; a later one wins."""
    for text in overrides:
        text = text.encode("utf-8", "backslashreplace").decode()  # bytes that are no text in this locale
        key, equals, value = text.partition("=")
        if not equals or not all(key.strip().split(".")):
            raise RecipeError("not of the form key=value", where=f"--set {text}", fix="e.g. --set noise.alpha=0.2")
        place = Place(f"--set {key.strip()}", next_order(values))
        put(values, key.strip(), parse(value, lambda _, place=place: place), place)  # type: ignore[misc]


def put_settings(values: Values, settings: Sequence[Setting]) -> None:
    """Apply settings that another file gives; a later one wins."""
    for key, given, place in settings:
        put(values, key, given, Place(place.text, next_order(values)))


def next_order(values: Values) -> int:
    """Where a further value stands in the order of all: last."""
    return 1 + max((place.order for place in values.places.values()), default=0)


def put(values: Values, key: str, given: Values, place: Place) -> None:
    """Put a value at a dotted key, in the place of what was there."""
    parent, keys = _open_parent(values, key.split("."), place)
    values.forget(keys)
    parent[keys[-1]] = given.root
    values.places.update({(*keys, *k): place for k in ((), *given.places)})
    values.written.update({(*keys, *k): text for k, text in given.written.items()})


def _open_parent(values: Values, names: Sequence[str], place: Place) -> tuple[Any, Keys]:
    """The mapping or list that holds the last key, and all keys; sections on the way are created."""
    node: Any = values.root
    keys: Keys = ()
    for name, following in zip(names, (*names[1:], None), strict=True):
        here = dotted(keys)
        if isinstance(node, list):
            if name not in map(str, range(len(node))):
                what = f"{here} is a list with indices 0 to {len(node) - 1}"
                raise RecipeError(what, where=place.text, fix="use one of these, or set the whole list")
        elif not isinstance(node, dict):
            what = f"{here} is {values.shown(keys)} and has no keys"
            raise RecipeError(what, where=place.text, fix=f"set {here} itself")
        key = int(name) if isinstance(node, list) else name
        keys = (*keys, key)
        if following is None:
            break
        if isinstance(node, dict) and node.get(name) is None:
            if following.isdecimal():
                raise RecipeError(f"{dotted(keys)} is not in the recipe", where=place.text, fix="set the whole list")
            node[name] = {}
            values.places[keys] = place
        node = node[key]
    return node, keys
