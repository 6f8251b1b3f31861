"""What `spa compare` prints: runs side by side."""

from collections.abc import Sequence
from pathlib import Path

from spa_recipes import api
from spa_recipes.cli.terminal import say, say_json, table
from spa_recipes.errors import RecipeError
from spa_recipes.report.policies import Line, as_table, lines


def print_comparison(names: Sequence[str], runs_dir: Path, *, as_json: bool) -> None:
    """Print a line for every evaluated policy of the runs.

    Raises:
        RecipeError: there is no such run, or none of them has an evaluated policy.
    """
    found = [line for name in names for line in _of_run(name, runs_dir)]
    if not found:
        raise RecipeError(
            "nothing is evaluated in " + ", ".join(names), fix="set data.heldout above 0, or let the run get further"
        )
    if as_json:
        say_json(found)
        return
    headings, rows = as_table(found, with_run=True)
    say(*table(headings, rows, right=headings[2:], wrap=False))


def _of_run(name: str, runs_dir: Path) -> list[Line]:
    prepared = api.prepare_resume(name, runs_dir)
    return lines(prepared.plan, prepared.run.name, prepared.run.manifests(prepared.plan))
