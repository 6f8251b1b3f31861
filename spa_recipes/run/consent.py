"""Nothing that a recipe chooses runs code, or sends a secret elsewhere, before the user has agreed to it."""

from collections.abc import Callable
from contextlib import suppress

from spa_recipes.errors import RecipeError
from spa_recipes.plan import Plan
from spa_recipes.plan.powers import Powers, powers_of
from spa_recipes.run.rundir import RunDir
from spa_recipes.state import user_state

Consent = Callable[[Plan, RunDir], None]
"""Is called before anything of a plan starts; raises a RecipeError where the user does not agree to its powers."""


def require(plan: Plan, run: RunDir) -> None:
    """Refuse a plan with powers that the user has not agreed to before.

    Raises:
        RecipeError: names them, and how to agree.
    """
    powers = powers_of(plan, run.path)
    if is_needed(powers):
        raise RecipeError(
            f"needs your trust, which a recipe cannot give itself, for {'; '.join(map(str, powers.asked))}",
            where=plan.recipe.name,
            fix="if you trust it, add --trust once: it is remembered until one of these changes",
        )


def is_needed(powers: Powers) -> bool:
    """Whether the user still has to agree to something."""
    return bool(powers.asked) and not user_state.knows("trusted", powers.digest)


def remember(powers: Powers) -> None:
    """Remember that the user agreed; where nothing can be remembered, the next call asks again."""
    with suppress(OSError):
        user_state.remember("trusted", powers.digest, "; ".join(map(str, powers.asked)))
