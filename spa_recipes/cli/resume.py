"""What `spa resume` prints before it goes on: which run it chose, and whose recipe."""

from collections.abc import Sequence
from pathlib import Path

from spa_recipes import api
from spa_recipes.cli.terminal import say, yellow
from spa_recipes.run.labels import done_again, new_labels
from spa_recipes.run.rundir import RunDir
from spa_recipes.units import for_shell


def choose_run(runs_dir: Path) -> str:
    """The folder of the newest unfinished run; prints which newer ones are passed over, and why.

    Raises:
        RecipeError: there is none.
    """
    found = api.newest_unfinished(runs_dir)
    for line in found.passed_over:
        say(yellow(line), err=True)
    return str(found.run.path)


def with_labels(run: RunDir, overrides: Sequence[str]) -> list[str]:
    """What adds the new labels of `spa label RUN` to the recipe; prints what becomes of them.

    A person who sets `data.added` decides alone.
    """
    if any(text.startswith("data.added") for text in overrides):
        return []
    found = new_labels(run)
    for line in found.told:
        say(line)
    return [] if found.override is None else [found.override]


def keeps_what_is_done(prepared: api.Prepared) -> bool:
    """Whether labels that are added leave all finished stages as they are; prints which ones they do not."""
    again = done_again(prepared.plan, prepared.run)
    if again:
        say(yellow(f"done again with the labels: {', '.join(again)}"), err=True)
    return not again


def tell_changed_file(run: RunDir) -> None:
    """Say that the file of the recipe was changed since it was read, that it is not used, and how to use it."""
    found = run.recipe_file_now()
    if found is not None and not found[1]:
        say(
            yellow(f"{found[0]} was changed since this run read it; the run goes on with the recipe that it has."),
            yellow(f"To use the file: spa run {for_shell(found[0])} --run-dir {for_shell(run.path)} --accept"),
            err=True,
        )
