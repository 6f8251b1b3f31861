"""The files, folders and Hub ids that settings name."""

from collections.abc import Iterator
from typing import Any, get_args

from spa_recipes.recipe.schema import Section


def locations(settings: Any) -> Iterator[str]:
    """Yield the value of every field marked `LOCATION` in the JSON form of a recipe or job.

    The settings need not be valid: an earlier version may have written them.
    """
    from spa_recipes.recipe.jobs import AnyRecipe  # `is_location` does without the jobs

    yield from _locations(AnyRecipe, settings)


def is_location(section: type[Section], name: str) -> bool:
    """Say whether a field of a section is marked `LOCATION`."""
    extra = section.model_fields[name].json_schema_extra
    return isinstance(extra, dict) and extra.get("location") is True


def _locations(annotation: Any, value: Any) -> Iterator[str]:
    """Yield the locations in the value of a field that has this type."""
    for part in value if isinstance(value, list) else [value]:
        if isinstance(part, dict):
            for section in sections_of(annotation):
                for name in section.model_fields.keys() & part.keys():
                    if is_location(section, name):
                        named = part[name] if isinstance(part[name], list) else [part[name]]
                        yield from (place for place in named if isinstance(place, str))
                    yield from _locations(section.model_fields[name].annotation, part[name])


def sections_of(annotation: Any) -> Iterator[type[Section]]:
    """Yield the sections that a type allows, such as those of a union or a list."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for argument in get_args(annotation):
        yield from sections_of(argument)
