"""`spa compare`: runs side by side."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from spa_recipes import api
from spa_recipes.errors import RecipeError
from spa_recipes.report.policies import HEADINGS, Line, cell, lines


def print_comparison(names: Sequence[str], runs_dir: Path, *, as_json: bool) -> None:
    """Every evaluated policy of the runs, a line each.

    Raises:
        RecipeError: there is no such run, or none of them has an evaluated policy.
    """
    found = [line for name in names for line in _of_run(name, runs_dir)]
    if not found:
        raise RecipeError(
            "nothing is evaluated in " + ", ".join(names), fix="set data.heldout above 0, or let the run get further"
        )
    if as_json:
        sys.stdout.write(json.dumps([line._asdict() for line in found], indent=2) + "\n")
        return
    table = Table(box=None, pad_edge=False)
    shown = [name for name in HEADINGS if any(getattr(line, name) is not None for line in found)]
    for name in shown:
        table.add_column(HEADINGS[name], justify="left" if name in ("run", "policy") else "right", no_wrap=True)
    for line in found:
        table.add_row(*(cell(name, getattr(line, name)) for name in shown))
    out = Console(highlight=False)
    if not out.is_terminal:
        out = Console(width=max(110, 16 * len(shown)), highlight=False)
    out.print(table)


def _of_run(name: str, runs_dir: Path) -> list[Line]:
    prepared = api.prepare_resume(name, runs_dir)
    return lines(prepared.plan, prepared.run.name, api.manifests(prepared.plan, prepared.run))
