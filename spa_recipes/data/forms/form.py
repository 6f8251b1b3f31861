"""What a form is: the columns that it needs, the kinds of their values, and how its rows are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from spa_recipes.recipe.schema import Columns

Raw = Mapping[str, Any]
Kind = Literal["text", "messages", "message", "texts", "empty list", "null", "other"]

KIND_NAMES: dict[Kind, str] = {
    "text": "a string",
    "messages": "a list of messages",
    "message": "a message",
    "texts": "a list of strings",
    "empty list": "an empty list",
    "null": "null",
    "other": "neither text nor messages",
}
TEXT: tuple[Kind, ...] = ("text",)
MESSAGES: tuple[Kind, ...] = ("messages",)


class BadRowError(Exception):
    """What is wrong with one row."""


class Form(NamedTuple):
    """A form: the kinds of the columns that it needs, and how its rows are read.

    `without` names columns that belong to other forms and must not hold anything; `optional` ones are used if there.
    """

    name: str
    needs: dict[str, tuple[Kind, ...]]
    parse: Callable[[Raw], Any]
    optional: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

    def mismatch(self, row: Raw) -> str:
        """Say why a row does not have this form; empty where it has."""
        for column, kinds in self.needs.items():
            if column not in row:
                return f"no column `{column}`"
            kind = kind_of(row[column])
            if kind == "null":
                return f"`{column}` is null"
            if kind not in kinds and not (kind == "empty list" and {"messages", "texts"} & set(kinds)):
                expected = " or ".join(KIND_NAMES[kind] for kind in kinds)
                return f"`{column}` is {KIND_NAMES[kind]}, where {expected} is expected ({self.name})"
        for column in self.without:
            if row.get(column) is not None:
                return f"`{column}` is set, but the first rows have none ({self.name})"
        return ""

    def columns(self, row: Raw) -> list[str]:
        """The columns that are read of a row like this one."""
        return [*self.needs, *(column for column in self.optional if row.get(column) not in (None, "", []))]


def kind_of(value: Any) -> Kind:
    """Classify a value by what it can mean."""
    if value is None:
        return "null"
    if isinstance(value, str):
        return "text"
    if isinstance(value, Mapping):
        return kind_of_mapping(value)
    if isinstance(value, list | tuple):
        if not value:
            return "empty list"
        if all(isinstance(item, str) for item in value):
            return "texts"
        if any(isinstance(item, Mapping) and kind_of_mapping(item) == "message" for item in value):
            return "messages"
    return "other"


def kind_of_mapping(value: Mapping[str, Any]) -> Kind:
    if ("role" in value and "content" in value) or ("from" in value and "value" in value):
        parts = (value.get("role", value.get("from")), value.get("content", value.get("value")))
        return "messages" if all(isinstance(part, list | tuple) for part in parts) else "message"
    return "other"


def detect(rows: Sequence[Raw], forms: Sequence[Form]) -> Form | None:
    """The form that most of these rows have; of two, that of the earlier row."""
    votes: Counter[int] = Counter()
    for row in rows:
        for index, form in enumerate(forms):
            if not form.mismatch(row):
                votes[index] += 1
                break
    return forms[votes.most_common(1)[0][0]] if votes else None


def describe(row: Raw) -> str:
    """Name the columns of a row and what they hold, for an error."""
    listed = [f"{column} ({KIND_NAMES[kind_of(value)]})" for column, value in list(row.items())[:12]]
    return ", ".join(listed) + (", ..." if len(row) > 12 else "") if listed else "none"


def rename(row: Raw, columns: Columns, *, rivals: tuple[str, ...] = ()) -> Raw:
    """Give the columns that the recipe names their usual names.

    `rivals` are columns that would otherwise be taken for the prompt.
    """
    named = {usual: name for usual, name in columns.model_dump().items() if name is not None}
    if not named:
        return row
    out = {key: value for key, value in row.items() if key not in named.values()}
    if columns.prompt is not None:
        for rival in rivals:
            out.pop(rival, None)
    for usual, name in named.items():
        if name not in row:
            raise BadRowError(f"no column `{name}`, which `columns.{usual}` names")
        out[usual] = row[name]
    return out
