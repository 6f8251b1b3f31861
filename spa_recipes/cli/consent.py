"""The question whether the user trusts a recipe, and the section of `spa plan` about what it may do."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spa_recipes.cli.terminal import bold, say, yellow
from spa_recipes.errors import RecipeError
from spa_recipes.plan import Plan
from spa_recipes.plan.powers import Power, powers_of
from spa_recipes.run.consent import Consent, refused, remember, still_asked
from spa_recipes.run.rundir import RunDir

if TYPE_CHECKING:
    from spa_recipes.cli.progress import PlainReporter

_NONE = {"runs": "no code but its own", "contacts": "no server", "reads": "no files of yours"}
"""What `spa plan` says where a recipe has no power of a kind; it always writes its run."""


def consent_of(reporter: PlainReporter, *, trust: bool, overrides: Sequence[str] = ()) -> Consent:
    """What asks the user on a terminal.

    Args:
        trust: the user's yes before the question.
        overrides: the `--set` of the command line; what the user typed there is a yes, too.
    """

    def consent(plan: Plan, run: RunDir) -> None:
        powers = powers_of(plan, run.path)
        asked = still_asked(powers, keys_of(overrides))
        if asked and not trust:
            if not (sys.stdin.isatty() and sys.stderr.isatty()):
                raise refused(plan, asked)
            with reporter.paused():
                _ask(plan.recipe.name, asked)
        if powers.asked:
            remember(powers)

    return consent


def keys_of(overrides: Sequence[str]) -> list[str]:
    """The keys of `--set` texts."""
    return [text.partition("=")[0].strip() for text in overrides]


def users_own_words(_plan: Plan, _run: RunDir) -> None:
    """Consent to a job that the user spelled out on the command line."""


def _ask(name: str, powers: list[Power]) -> None:
    say(bold(f"{name} wants to run or send:"), *(f"  {power}" for power in powers), err=True)
    say("It is remembered until one of these changes. `spa plan` shows all that a recipe may do.", err=True)
    sys.stderr.write("Do you trust it? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise RecipeError("you did not agree; nothing was started", where=name, fix="see `spa plan RECIPE`")


def print_powers(plan: Plan, run: Path, overrides: Sequence[str] = ()) -> None:
    """Print what a recipe may do, and what of it the user has to trust; `overrides` are those of the command line."""
    powers = powers_of(plan, run)
    asked = still_asked(powers, keys_of(overrides))
    say("", bold("what this recipe may do"))
    for name, some in zip(powers._fields, powers, strict=True):
        for place, power in enumerate(some or [Power("", _NONE[name])]):
            line = f"    {name if place == 0 else '':<16} {power}"
            note = "asks for your trust first" if power in asked else "you trust it"
            say(yellow(f"{line}: {note}") if power.asked else line)
