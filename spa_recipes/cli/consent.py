"""The question whether the user trusts a recipe, and the section of `spa plan` about what it may do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from spa_recipes.cli.terminal import bold, say, yellow
from spa_recipes.errors import RecipeError
from spa_recipes.plan import Plan
from spa_recipes.plan.powers import Power, powers_of
from spa_recipes.run.consent import Consent, is_needed, remember, require
from spa_recipes.run.rundir import RunDir

if TYPE_CHECKING:
    from spa_recipes.cli.progress import PlainReporter

_NONE = {"runs": "no code but its own", "contacts": "no server", "reads": "no files of yours"}
"""What `spa plan` says where a recipe has no power of a kind; it always writes its run."""


def consent_of(reporter: PlainReporter, *, trust: bool) -> Consent:
    """What asks the user on a terminal; `trust` is the user's yes before the question."""

    def consent(plan: Plan, run: RunDir) -> None:
        powers = powers_of(plan, run.path)
        if not is_needed(powers):
            return
        if not trust:
            if not (sys.stdin.isatty() and sys.stderr.isatty()):
                require(plan, run)
            with reporter.paused():
                _ask(plan.recipe.name, powers.asked)
        remember(powers)

    return consent


def users_own_words(_plan: Plan, _run: RunDir) -> None:
    """Consent to a job that the user spelled out on the command line."""


def _ask(name: str, powers: list[Power]) -> None:
    say(bold(f"{name} wants to run or send:"), *(f"  {power}" for power in powers), err=True)
    say("It is remembered until one of these changes. `spa plan` shows all that a recipe may do.", err=True)
    sys.stderr.write("Do you trust it? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise RecipeError("you did not agree; nothing was started", where=name, fix="see `spa plan RECIPE`")


def print_powers(plan: Plan, run: Path) -> None:
    """Print what a recipe may do, and what of it the user has to trust."""
    powers = powers_of(plan, run)
    note = "asks for your trust first" if is_needed(powers) else "you trust it"
    say("", bold("what this recipe may do"))
    for name, some in zip(powers._fields, powers, strict=True):
        for place, power in enumerate(some or [Power("", _NONE[name])]):
            line = f"    {name if place == 0 else '':<16} {power}"
            say(yellow(f"{line}: {note}") if power.asked else line)
