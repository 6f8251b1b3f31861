"""What a form is: the columns that it needs and may have, the kinds of their values, and how its rows are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

Raw = Mapping[str, Any]
Kind = Literal["text", "transcript", "messages", "message", "texts", "ranked", "numbers", "empty list", "null", "other"]

KIND_NAMES: dict[Kind, str] = {
    "text": "a string",
    "transcript": "a transcript in one string",
    "messages": "a list of messages",
    "message": "a message",
    "texts": "a list of strings",
    "ranked": "a list of answers with ranks or scores",
    "numbers": "a list of numbers",
    "empty list": "an empty list",
    "null": "null",
    "other": "neither text nor messages",
}
TEXT: tuple[Kind, ...] = ("text",)
MESSAGES: tuple[Kind, ...] = ("messages",)
ANY_LABEL: tuple[Kind, ...] = ("text", "null", "other")

ANSWER_TEXTS = ("answer", "response", "text", "content", "output", "completion")
"""Keys of the text of an answer in a list of answers."""
ANSWER_RANKS = ("rank",)
ANSWER_SCORES = ("overall_score", "score", "rating")
"""Keys that order the answers of a list: a low rank is good, and a high score."""

TRANSCRIPT_TURNS = ("\n\nHuman:", "\n\nAssistant:")
"""How the transcripts of HH-RLHF mark their turns."""
TRANSCRIPT_STARTS = (TRANSCRIPT_TURNS[0], "Human: ")
"""How they begin."""


class BadRowError(Exception):
    """What is wrong with one row."""


class NoPairError(Exception):
    """Why a well-formed row gives no pair, such as a tie. Such rows are counted, whatever `on_bad_row` says."""


class Slot(NamedTuple):
    """A column by its use: its usual names, of which the first that a row has is read, and the kinds of its values."""

    names: tuple[str, ...]
    kinds: tuple[Kind, ...] = ("text", "transcript", "messages", "other", "numbers", "texts")


class Form(NamedTuple):
    """A form: the columns that it needs and those that it may have, by their use, and what reads a row of them.

    Attributes:
        parse: gets the values by their use, and never a column that is neither in `needs` nor in `may`.
        without: columns that belong to other forms and must not hold anything.
        whole: whether the messages of the form hold everything that was said, so that a further column with a prompt
            only repeats a part of it.
        first_is: the value of the label that says that the first answer is better, where the dataset defines it.
    """

    name: str
    needs: dict[str, Slot]
    parse: Callable[[Raw], Any]
    may: Mapping[str, Slot] = MappingProxyType({})
    without: tuple[str, ...] = ()
    whole: bool = False
    first_is: float | None = None


SYSTEM = Slot(("system", "system_prompt", "system_message"))
"""What every form may have: text that stands in front of the prompt as a message of the system."""
TOOLS = Slot(("tools",), ("other", "text", "texts"))
"""What every form may have: the tools that the assistant may call, which the chat template writes."""
PROMPT_COLUMNS = frozenset(
    ("prompt", "instruction", "question", "query", "messages", "conversations", "conversation", "dialogue")
)
"""Columns that hold what a model is asked, in one form or another."""
CONTEXT_COLUMNS = PROMPT_COLUMNS | {
    *SYSTEM.names,
    *TOOLS.names,
    *("input", "context", "history", "functions", "documents", "images", "image", "audio", "video"),
}
"""Columns that are a part of what a model is asked. None of them is left out silently: see `reading`."""


def kind_of(value: Any) -> Kind:
    """Classify a value by what it can mean."""
    if value is None:
        return "null"
    if isinstance(value, str):
        return "transcript" if is_transcript(value) else "text"
    if isinstance(value, Mapping):
        return kind_of_mapping(value)
    if isinstance(value, list | tuple):
        return _kind_of_list(value)
    return "other"


def _kind_of_list(value: list[Any] | tuple[Any, ...]) -> Kind:
    if not value:
        return "empty list"
    if all(isinstance(item, str) for item in value):
        return "texts"
    if any(isinstance(item, Mapping) and kind_of_mapping(item) == "message" for item in value):
        return "messages"
    if all(is_number(item) for item in value):
        return "numbers"
    if all(isinstance(item, Mapping) for item in value) and any(_is_ranked(item) for item in value):
        return "ranked"
    return "other"


def kind_of_mapping(value: Mapping[str, Any]) -> Kind:
    """Whether an object is a message, or messages as a struct of lists."""
    if ("role" in value and ("content" in value or "tool_calls" in value)) or ("from" in value and "value" in value):
        parts = (value.get("role", value.get("from")), value.get("content", value.get("value")))
        return "messages" if all(isinstance(part, list | tuple) for part in parts) else "message"
    return "other"


def is_transcript(text: str) -> bool:
    """Whether a text is a whole conversation as HH-RLHF writes it."""
    return text.startswith(TRANSCRIPT_STARTS) and (text[0] == "\n" or TRANSCRIPT_TURNS[1] in text)


def is_number(value: Any) -> bool:
    """Whether a value is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_empty(value: Any) -> bool:
    """Whether a cell holds nothing."""
    return value is None or value == "" or value == [] or value == {}


def _is_ranked(item: Mapping[str, Any]) -> bool:
    return any(key in item for key in ANSWER_TEXTS) and any(key in item for key in (*ANSWER_RANKS, *ANSWER_SCORES))


def describe(row: Raw) -> str:
    """Name the columns of a row and what they hold, for an error."""
    listed = [f"{column} ({KIND_NAMES[kind_of(value)]})" for column, value in list(row.items())[:12]]
    return ", ".join(listed) + (", ..." if len(row) > 12 else "") if listed else "none"
