"""Cells that hold something else than they seem to: JSON in a text, a number for a text, a list of the one text.

What a column holds is decided on the first rows, and all of its cells must hold that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from spa_recipes.data.forms.form import BadRowError, Raw, is_empty, kind_of

LIST_COLUMNS = frozenset(("output", "responses", "answers", "completions", "history", "scores"))
"""Columns that may hold lists of strings or numbers; elsewhere, a text that happens to be JSON stays a text."""
TEXT_COLUMNS = frozenset(
    (
        *("prompt", "question", "query", "instruction", "input", "chosen", "rejected"),
        *("chosen_response", "rejected_response", "response_a", "response_b", "response_1", "response_2"),
        *("response1", "response2", "output_1", "output_2", "answer_a", "answer_b", "completion_a", "completion_b"),
        *("completion", "response", "answer", "human_ref_A", "human_ref_B"),
    )
)
"""Columns of texts, in which a number and a list of one string stand for a text."""
_PYTHON = re.compile(r"\[?\s*(\{\s*'(role|content|from|value)'\s*:|'.*'\s*\]$)", re.DOTALL)
_STRING = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
_LIST_OF_STRINGS = re.compile(rf"\[\s*{_STRING}(?:\s*(?:,\s*)?{_STRING})*\s*\]\s*", re.DOTALL)
"""As JSON, Python or NumPy writes it."""
_PROMPTS = frozenset(("prompt", "question", "query", "instruction"))


class _Decoded(NamedTuple):
    """A column whose cells are decoded, and what is said of it."""

    name: str
    decode: Callable[[Any], Any]
    words: str


class Cells:
    """The columns of a dataset whose cells are decoded before their form is told."""

    def __init__(self, first: Sequence[Raw], named: Sequence[str] = ()) -> None:
        """`named` are the columns that a recipe names as texts.

        Raises:
            BadRowError: a column holds what cannot be read back.
        """
        texts = TEXT_COLUMNS | set(named)
        columns = dict.fromkeys(name for row in first for name in row)
        held = {name: [row[name] for row in first if not is_empty(row.get(name))] for name in columns}
        json_lists = {name for name, values in held.items() if name in texts and _json_kinds(values) == {"texts"}}
        self._decoded: list[_Decoded] = []
        for name, values in held.items():
            # A prompt is never a list of strings, so where it is one, its neighbours are lists as well.
            lists = name in LIST_COLUMNS or (name in json_lists and json_lists & _PROMPTS)
            if (found := _decoding(name, values, text=name in texts, lists=bool(lists))) is not None:
                self._decoded.append(found)
                if lists and name in texts and name not in LIST_COLUMNS:
                    self._decoded.append(_Decoded(name, _only_text, ""))

    @property
    def words(self) -> list[str]:
        """What was decoded, for the line that says the form."""
        return [f"`{found.name}`: {found.words}" for found in self._decoded if found.words]

    @property
    def decodes(self) -> bool:
        """Whether `decode` changes anything."""
        return bool(self._decoded)

    def decode(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with its cells decoded, in place.

        Raises:
            BadRowError: a cell does not hold what its column holds.
        """
        for name, decode, _ in self._decoded:
            value = row.get(name)
            if not is_empty(value):
                try:
                    row[name] = decode(value)
                except (ValueError, RecursionError) as error:
                    raise BadRowError(f"column {name} {error}") from None
        return row


def _decoding(name: str, values: Sequence[Any], *, text: bool, lists: bool) -> _Decoded | None:
    if not values:
        return None
    if text and all(type(value) is int for value in values):
        return _Decoded(name, _text_of_number, "whole numbers, read as text")
    if text and name not in LIST_COLUMNS and all(kind_of(value) == "texts" for value in values):
        return _Decoded(name, _only_text, "lists of one string, read as the string")
    if not all(isinstance(value, str) for value in values):
        return None
    if all(_PYTHON.match(value) for value in values):
        raise BadRowError(
            f"column {name} holds lists or objects as Python prints them, which cannot be read back safely; export the "
            "dataset as JSONL or Parquet"
        )
    kinds = _json_kinds(values)
    if kinds and kinds <= {"messages", "message", "ranked", "empty list"} and kinds != {"empty list"}:
        return _Decoded(name, _from_json, "decoded from JSON")
    if lists and kinds and None not in kinds:
        return _Decoded(name, _from_json, "decoded from JSON")
    return None


def _json_kinds(values: Sequence[Any]) -> set[str | None]:
    """Kinds of what cells hold as JSON; None for one that is no JSON list or object. Empty where one is no text."""
    kinds: set[str | None] = set()
    for value in values:
        if not isinstance(value, str):
            return set()
        if not value.lstrip().startswith(("[", "{")):
            return {None}
        try:
            kinds.add(kind_of(json.loads(value)))
        except (ValueError, RecursionError):
            return {None}
    return kinds


def is_list_as_text(value: Any) -> bool:
    """Whether a cell is the text of a list of strings, as JSON, Python or NumPy writes it."""
    return isinstance(value, str) and value.startswith("[") and _LIST_OF_STRINGS.fullmatch(value) is not None


def _from_json(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError("is not text, as it is in the first rows")
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError("is not JSON, as it is in the first rows") from None


def _text_of_number(value: Any) -> str:
    if type(value) is not int:
        raise ValueError("is not a whole number, as it is in the first rows")
    return str(value)


def _only_text(value: Any) -> str:
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise ValueError("is not a list of strings, as it is in the first rows")
    if len(value) != 1:
        raise ValueError(f"holds {len(value)} strings: several turns, which are not told apart")
    text: str = value[0]
    return text
