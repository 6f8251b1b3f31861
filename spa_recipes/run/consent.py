"""Nothing that a recipe chooses runs code, or sends a secret elsewhere, before the user has agreed to it."""

from collections.abc import Callable, Sequence
from contextlib import suppress

from spa_recipes.errors import RecipeError
from spa_recipes.plan import Plan
from spa_recipes.plan.powers import Power, Powers, powers_of
from spa_recipes.run.rundir import RunDir
from spa_recipes.state import user_state

Consent = Callable[[Plan, RunDir], None]
"""Is called before anything of a plan starts; raises a RecipeError where the user does not agree to its powers."""


def require(plan: Plan, run: RunDir) -> None:
    """Refuse a plan with powers that the user has not agreed to before.

    Raises:
        RecipeError: names them, and how to agree.
    """
    if asked := still_asked(powers_of(plan, run.path)):
        raise refused(plan, asked)


def still_asked(powers: Powers, typed: Sequence[str] = ()) -> list[Power]:
    """What the user still has to agree to: has not typed on the command line, nor agreed to before.

    Args:
        typed: keys of the recipe that the command line sets; a section stands for all that is in it.
    """
    if user_state.knows("trusted", powers.digest):
        return []
    return [power for power in powers.asked if not _is_typed(power, typed)]


def _is_typed(power: Power, typed: Sequence[str]) -> bool:
    return bool(power.said_by) and all(
        any(setting == key or setting.startswith(f"{key}.") for key in typed) for setting in power.said_by
    )


def refused(plan: Plan, asked: Sequence[Power]) -> RecipeError:
    """The error for powers that nobody agreed to."""
    return RecipeError(
        f"needs your trust, which a recipe cannot give itself, for {'; '.join(map(str, asked))}",
        where=plan.recipe.name,
        fix="if you trust it, add --trust once: it is remembered until one of these changes",
    )


def remember(powers: Powers) -> None:
    """Remember that the user agreed; where nothing can be remembered, the next call asks again."""
    with suppress(OSError):
        user_state.remember("trusted", powers.digest, "; ".join(map(str, powers.asked)))
