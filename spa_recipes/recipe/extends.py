"""Recipes that build on others: `extends: other.yaml`, then only what is different.

A section is merged key by key into the section of the same name. Text, numbers, lists and null replace the old value.
A section with a different `type` replaces the old section, because the old keys belong to the old type.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spa_recipes.errors import RecipeError
from spa_recipes.recipe.problems import EXAMPLES
from spa_recipes.recipe.shipped import shipped_file
from spa_recipes.recipe.text import STARTER, Keys, Place, Values, parse, read_text

EXTENDS = "extends"
MAX_CHAIN = 8
_SUFFIXES = {".yaml", ".yml"}


def read_values(path: Path) -> tuple[Values, str]:
    """The values of a recipe and of the recipes it extends, each with its place, and the text of the recipe's own file.

    Raises:
        RecipeError: a file cannot be read as a recipe, or the chain of recipes does not end.
    """
    values, text = read_mapping(path)
    chain = [(path, values)]
    while (base := _base_of(*chain[-1])) is not None:
        where = chain[-1][1].places[(EXTENDS,)].text
        if len(chain) == MAX_CHAIN or base.resolve() in {link.resolve() for link, _ in chain}:
            raise RecipeError(
                f"the chain of recipes does not end ({' -> '.join(link.name for link, _ in chain)} -> {base.name})",
                where=f"{where}: {EXTENDS}",
                fix=f"remove one `extends`; a chain has at most {MAX_CHAIN} recipes and none of them twice",
            )
        chain.append((base, _read_base(base, where)))
    for link, own in chain[:-1]:
        if "name" not in own.root:
            place = own.places[(EXTENDS,)].text
            raise RecipeError(
                "a recipe that extends another needs its own name, which becomes the name of its run folder",
                where=place,
                fix=f"add e.g. name: {link.stem}",
            )
    merged = chain[-1][1]
    for _, own in reversed(chain[:-1]):
        own.forget((EXTENDS,))
        del own.root[EXTENDS]
        _merge(merged, own, ())
    return merged, text


def read_mapping(
    path: Path,
    what: str = "recipe",
    starter: str = STARTER,
    first: str = EXAMPLES["name"],
) -> tuple[Values, str]:
    """The values of one file, each with its place, and its text.

    Args:
        path: the file.
        what: what it should be, for messages.
        starter: the remedy for a file that is empty or not there.
        first: how such a file may begin.

    Raises:
        RecipeError: it cannot be read, or is no mapping.
    """
    text = read_text(path, what, starter)
    values = parse(text, lambda line: Place(f"{path}:{line}", line))
    if values.root is None and values.written[()] == "":
        raise RecipeError(f"the {what} is empty", where=str(path), fix=starter)
    if not isinstance(values.root, dict):
        problem = f"a {what} is a mapping of keys to values, not {values.shown(())}"
        raise RecipeError(problem, where=f"{path}:1", fix=f"begin with {first}")
    return values, text


def _base_of(path: Path, values: Values) -> Path | None:
    """The recipe that this one extends: a path, which starts at its folder if relative, or a shipped one's name."""
    if EXTENDS not in values.root:
        return None
    named = values.root[EXTENDS]
    if not isinstance(named, str) or not named:
        raise RecipeError(
            f"must be the path of a recipe, not {values.shown((EXTENDS,))}",
            where=f"{values.places[(EXTENDS,)].text}: {EXTENDS}",
            fix=f"e.g. {EXTENDS}: ultrafeedback_3p3.yaml",
        )
    base = path.parent / Path(named).expanduser()
    return base if base.is_file() else shipped_file(Path(named)) or base


def _read_base(base: Path, where: str) -> Values:
    """The values of a recipe that another one names: not the user does, so it has to be a recipe by its name, too.

    Errors quote lines of a recipe. Of other files, nothing is to be read and quoted.
    """
    refuse_other_files(base, f"{where}: {EXTENDS}")
    try:
        return read_mapping(base)[0]
    except RecipeError as error:
        if error.where != str(base):  # a mistake inside that file is told with its own line
            raise
        raise RecipeError(f"{base}: {error.what}", where=f"{where}: {EXTENDS}", fix=error.fix) from None


def refuse_other_files(named: Path, where: str) -> None:
    """RecipeError for a file that another file names as a recipe, and that is none by its name."""
    file = named.resolve()
    if file.exists() and not file.is_dir() and not (file.is_file() and file.suffix.lower() in _SUFFIXES):
        raise RecipeError(f"{named}: not a file named .yaml or .yml", where=where, fix="name a recipe, in its own file")


def _merge(values: Values, own: Values, keys: Keys) -> None:
    """Put the values that `own` has at `keys` over those in `values`."""
    target, changes = values.get(keys), own.get(keys)
    for name, change in changes.items():
        here = (*keys, name)
        if _is_same_section(target.get(name), change):
            values.places[here] = own.places[here]
            _merge(values, own, here)
            continue
        values.forget(here)
        target[name] = change
        values.places.update({k: place for k, place in own.places.items() if k[: len(here)] == here})
        values.written.update({k: text for k, text in own.written.items() if k[: len(here)] == here})


def _is_same_section(old: Any, new: Any) -> bool:
    if not isinstance(old, dict) or not isinstance(new, dict):
        return False
    return "type" not in new or new["type"] == old.get("type")
