"""What `spa resume` without a name prints before it goes on."""

from pathlib import Path

from spa_recipes import api
from spa_recipes.cli.terminal import say, yellow


def choose_run(runs_dir: Path) -> str:
    """The folder of the newest unfinished run; prints which newer ones are passed over, and why.

    Raises:
        RecipeError: there is none.
    """
    found = api.newest_unfinished(runs_dir)
    for line in found.passed_over:
        say(yellow(line), err=True)
    return str(found.run.path)
