"""The models of a recipe before its iterations, and what a model is called."""

from typing import Any, NamedTuple

from spa_recipes.plan.stages import Input


class Models(NamedTuple):
    """The models of a recipe before its iterations.

    Attributes:
        settings: the model section as settings of a stage that trains no model.
        training: the same for one that does.
        base: the model that the recipe names.
        init: pi_init.
    """

    settings: dict[str, Any]
    training: dict[str, Any]
    base: Input
    init: Input


class Named(NamedTuple):
    """A model and what it is called."""

    model: Input
    name: str
