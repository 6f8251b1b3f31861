"""Options and arguments that several commands have."""

from pathlib import Path
from typing import Annotated

import typer


def complete_recipe(begun: str) -> list[str]:
    """Names of shipped recipes that begin like this, for the shell, which completes files by itself."""
    from spa_recipes.recipe.shipped import shipped_names

    return [name for name in shipped_names() if name.startswith(begun)]


Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, e.g. `--set noise.alpha=0`; may be repeated."),
]
RunDirOption = Annotated[Path | None, typer.Option("--run-dir", help="Folder of the run; default: `runs/<name>`.")]
RunsDir = Annotated[Path, typer.Option("--runs-dir", help="Folder of all runs.")]
_RECIPE_HELP = "A recipe file (YAML), or the name of a shipped one (`spa recipes`)."
RecipeArgument = Annotated[
    Path,
    typer.Argument(metavar="RECIPE", help=_RECIPE_HELP, show_default=False, autocompletion=complete_recipe),
]
Recipes = Annotated[
    list[Path],
    typer.Argument(metavar="RECIPE...", help=_RECIPE_HELP, show_default=False, autocompletion=complete_recipe),
]
Accept = Annotated[
    bool,
    typer.Option("--accept", help="The recipe changed since the run started: do the affected stages again."),
]
Trust = Annotated[
    bool,
    typer.Option("--trust", help="Agree to the code that the recipe runs and the keys that it sends (see `spa plan`)."),
]
Until = Annotated[
    str | None,
    typer.Option(
        "--until",
        metavar="STAGE",
        help="Do this stage and the stages that it needs, no others, e.g. `judge-1` (see `spa plan`).",
    ),
]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="Name or folder of a run.", show_default=False)]
MaybeRun = Annotated[str | None, typer.Argument(metavar="[RUN]", help="Name or folder of a run.", show_default=False)]
