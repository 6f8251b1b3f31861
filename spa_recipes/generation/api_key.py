"""The key of an endpoint. A module of its own, so that a check of the key does not import the client."""

import os

from spa_recipes.errors import RecipeError
from spa_recipes.recipe.schema import Endpoint
from spa_recipes.redaction import keep_secret


def api_key(endpoint: Endpoint) -> str | None:
    """Return the key of an endpoint, and keep it out of all output; None where the recipe says that it needs none.

    Raises:
        RecipeError: the environment variable is not set, or an HTTP header cannot hold its value.
    """
    name = endpoint.api_key_env
    if name is None:
        return None
    key = os.environ.get(name, "")
    if not key:
        raise RecipeError(
            f"the environment variable {name} is not set, which holds the key of {name_of(endpoint)}",
            fix=f"export {name}=..., or set api_key_env: null if the server wants no key",
        )
    # The HTTP library would show such a key in its error.
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise RecipeError(
            f"the environment variable {name} is no key: it holds white space or characters beyond ASCII",
            fix=f"set {name} to the key alone",
        )
    keep_secret(key)
    return key


def name_of(endpoint: Endpoint) -> str:
    """Return what errors call an endpoint."""
    return f"{endpoint.base_url} (model {endpoint.model})"
