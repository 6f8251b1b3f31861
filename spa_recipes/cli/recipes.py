"""`spa recipes`: the recipes that come with the package."""

from pathlib import Path
from typing import Annotated

import typer

from spa_recipes.cli.examples import examples
from spa_recipes.cli.options import complete_recipe
from spa_recipes.errors import RecipeError

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="A name of the list.", show_default=False, autocompletion=complete_recipe)
]

recipes_app = typer.Typer(
    help="List the recipes that come with the package; show or copy one.\n\n"
    "Every command that takes a recipe takes their names.",
    epilog=examples("spa recipes", "spa recipes show quickstart", "spa recipes copy smollm2_local my.yaml"),
    rich_markup_mode=None,
)


@recipes_app.callback(invoke_without_command=True)
def list_(context: typer.Context) -> None:
    """Print a line for each recipe: what it is, how many labels it learns from, which hardware it was written for."""
    if context.invoked_subcommand is not None:
        return
    from spa_recipes.cli.terminal import say, table
    from spa_recipes.recipe.load import load_recipe
    from spa_recipes.recipe.shipped import shipped_names

    recipes = [load_recipe(_file(name)).recipe for name in shipped_names()]
    rows = [[recipe.name, recipe.description, _labels(recipe.data.seed_labels), recipe.hardware] for recipe in recipes]
    say(*table(("recipe", "what it is", "labels", "hardware"), rows))
    say("run one by its name: `spa run quickstart`; change one: `spa recipes copy NAME my.yaml`")


@recipes_app.command()
def show(name: Name) -> None:
    """Print a recipe as it is written."""
    from spa_recipes.cli.terminal import say_document

    say_document(_file(name).read_text())


@recipes_app.command()
def copy(
    name: Name,
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Default: NAME.yaml.", show_default=False)
    ] = None,
) -> None:
    """Write a recipe into a file of your own, to change it."""
    from shlex import quote

    from spa_recipes.cli.terminal import say

    source = _file(name)
    target = file if file is not None else Path(source.name)
    write_new(target, source.read_text())
    say(f"wrote {target}; next: edit it, then `spa plan {quote(str(target))}`")


def write_new(path: Path, text: str) -> None:
    """Write a file of the user's that is not there yet.

    Raises:
        RecipeError: it is there, or its folder is not.
    """
    from spa_recipes.state import atomic

    if path.exists():
        raise RecipeError("the file is there already", where=str(path), fix="choose another name")
    if not path.parent.is_dir():
        raise RecipeError("no such folder", where=str(path.parent), fix="make it first")
    atomic.write_text(path, text)


def _file(name: str) -> Path:
    from spa_recipes.recipe.shipped import shipped_file

    path = shipped_file(Path(name))
    if path is None:
        raise RecipeError("no shipped recipe has this name", where=name, fix="`spa recipes` lists them")
    return path


def _labels(seed_labels: int | float) -> str:
    if isinstance(seed_labels, int):
        return f"{seed_labels:,}" if seed_labels else "none"
    return "all" if seed_labels == 1 else f"{seed_labels:.1%}"
