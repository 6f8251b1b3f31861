"""What `spa compare` prints: runs side by side."""

from collections.abc import Sequence
from pathlib import Path

from spa_recipes import api
from spa_recipes.cli.terminal import say, say_json, table, yellow
from spa_recipes.errors import RecipeError
from spa_recipes.report.policies import Line, as_table, lines
from spa_recipes.run.intact import remarks


def print_comparison(names: Sequence[str], runs_dir: Path, *, as_json: bool) -> None:
    """Print a line for every evaluated policy of the runs, and what of the runs is not as they left it.

    Raises:
        RecipeError: there is no such run, or none of them has an evaluated policy.
    """
    runs = [api.prepare_resume(name, runs_dir) for name in names]
    found = [line for prepared in runs for line in _lines(prepared)]
    if not found:
        raise RecipeError(
            "nothing is evaluated in " + ", ".join(names), fix="set data.heldout above 0, or let the run get further"
        )
    if as_json:
        say_json(found)
    else:
        headings, rows = as_table(found, with_run=True)
        say(*table(headings, rows, right=headings[2:], wrap=False))
    for line in [line for prepared in runs for line in remarks(prepared.run)]:
        say(yellow(line), err=as_json)


def _lines(prepared: api.Prepared) -> list[Line]:
    return lines(prepared.plan, prepared.run.name, prepared.run.manifests(prepared.plan))
