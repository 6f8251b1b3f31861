"""Tells the form of a dataset and gives its rows by the use of their columns. Every column is used, named or refused.

A form is told by the first rows, and all rows must have it. A column that the form does not read is named as ignored;
one that may be a part of what the model was asked (`CONTEXT_COLUMNS`) makes its row malformed unless it is empty, only
repeats what is read, or is named in `columns.ignore`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from spa_recipes.data.forms.answers import Answers
from spa_recipes.data.forms.cells import Cells
from spa_recipes.data.forms.form import (
    CONTEXT_COLUMNS,
    KIND_NAMES,
    PROMPT_COLUMNS,
    SYSTEM,
    TOOLS,
    BadRowError,
    Form,
    Raw,
    Slot,
    is_empty,
    kind_of,
)
from spa_recipes.data.forms.messages import READ_KEYS, with_system, with_tools
from spa_recipes.data.rows import Message
from spa_recipes.recipe.schema import Columns

_MOST_LAYOUTS = 1000


class _Layout(NamedTuple):
    """How the columns of a row are used, for all rows that have the same ones.

    Attributes:
        missing: what is wrong with such rows as a whole.
        may: the columns that the form may have, by their use.
        left: columns that may be context and are not read.
    """

    missing: str
    may: list[tuple[str, str]]
    left: list[str]


class Reading:
    """A form and the columns of one dataset that have its parts."""

    def __init__(self, form: Form, columns: Columns, first: Sequence[Raw], cells: Cells) -> None:
        self.form = form
        self.cells = cells
        self.columns = columns
        self.needs = {slot: _name_of(slot, need, columns, first) for slot, need in form.needs.items()}
        may = {"system": SYSTEM, "tools": TOOLS, **form.may}
        self.may = {slot: _names_of(slot, usual, columns) for slot, usual in may.items()}
        self.used: dict[str, None] = dict.fromkeys(self.needs.values())
        self.ignored: dict[str, None] = dict.fromkeys(_ignored_keys(first, self.needs))
        self._needed = [(slot, self.needs[slot], form.needs[slot].kinds) for slot in self.needs]
        # What the recipe says of columns decides, also where another form would read them.
        passed_over = {*self.needs.values(), *columns.ignore, *(PROMPT_COLUMNS if columns.prompt is not None else ())}
        self._without = [name for name in form.without if name not in passed_over]
        self._layouts: dict[tuple[str, ...], _Layout] = {}

    def view(self, row: Raw) -> tuple[dict[str, Any], list[str]]:
        """The values of a row by their use, and the columns that may be context and are not read.

        Raises:
            BadRowError: the row does not have the form.
        """
        names = tuple(row)
        layout = self._layouts.get(names) or self._layout(names)
        if layout.missing:
            raise BadRowError(layout.missing)
        view = {}
        for slot, name, kinds in self._needed:
            value = row[name]
            kind = kind_of(value)
            if kind not in kinds:
                self._refuse_kind(value, name, kinds)
            view[slot] = value
        for name in self._without:
            if not is_empty(row.get(name)):
                raise BadRowError(f"`{name}` is set, but the first rows have none ({self.form.name})")
        for slot, name in layout.may:
            value = row[name]
            if not is_empty(value):
                view[slot] = value
                self.used[name] = None
        return view, [name for name in layout.left if not is_empty(row[name])] if layout.left else []

    def looked_at(self, names: tuple[str, ...]) -> tuple[list[tuple[str, str]], list[str]]:
        """Of rows with these columns: the use and the name of each that is read, and those that are to be empty."""
        layout = self._layouts.get(names) or self._layout(names)
        used = [(slot, name) for slot, name in (*self.needs.items(), *layout.may) if name in names]
        return used, [name for name in names if name in layout.left or name in self._without]

    def parse(self, row: Raw) -> tuple[Any, dict[str, Any]]:
        """What the form finds in a row, with its system message, and the row's values by their use.

        Raises:
            BadRowError: the row does not have the form, or holds context that the form does not read.
        """
        view, left = self.view(row)
        try:
            found = _with_context(self.form.parse(view), view)
        except BadRowError as error:
            raise BadRowError(self._by_name(str(error))) from error
        if left:
            self._check_left(row, left, found)
        return found, view

    def _layout(self, names: tuple[str, ...]) -> _Layout:
        missing = next((self._missing(slot) for slot, name in self.needs.items() if name not in names), "")
        may = []
        for slot, known in self.may.items():
            found = next((name for name in known if name in names and name not in self.needs.values()), None)
            if found is not None:
                may.append((slot, found))
        used = {*self.needs.values(), *(name for _, name in may)}
        rest = [name for name in names if name not in used]
        self.ignored.update(dict.fromkeys(rest))
        # Where the recipe names the prompt, or messages hold it whole, other columns with a prompt are none.
        known_prompt = self.form.whole or self.columns.prompt is not None
        context = CONTEXT_COLUMNS - PROMPT_COLUMNS if known_prompt else CONTEXT_COLUMNS
        left = [name for name in rest if name in context and name not in self.columns.ignore]
        layout = _Layout(missing, may, left)
        if len(self._layouts) < _MOST_LAYOUTS:
            self._layouts[names] = layout
        return layout

    def _missing(self, slot: str) -> str:
        named = getattr(self.columns, _KEYS.get(slot, slot), None)
        return f"no column `{self.needs[slot]}`" + (f", which `columns.{_KEYS.get(slot, slot)}` names" if named else "")

    def _refuse_kind(self, value: Any, name: str, kinds: Sequence[str]) -> None:
        kind = kind_of(value)
        if kind == "null":
            raise BadRowError(f"`{name}` is null")
        if kind == "empty list" and {"messages", "texts", "ranked", "numbers"} & set(kinds):
            return
        expected = " or ".join(name for known, name in KIND_NAMES.items() if known in kinds)
        raise BadRowError(f"`{name}` is {KIND_NAMES[kind]}, where {expected} is expected ({self.form.name})")

    def _check_left(self, row: Raw, left: Sequence[str], found: Any) -> None:
        """Refuse a column that may be context, unless all its texts are a part of what is read."""
        messages: list[Message] = found.prompt if isinstance(found, Answers) else found
        read = [message["content"].strip() for message in messages]
        answers = [text.strip() for text in found.texts if isinstance(text, str)] if isinstance(found, Answers) else []
        for name in left:
            texts = [text.strip() for text in _texts_in(row[name]) if text.strip()]
            repeated = texts and all(any(text in whole for whole in (*read, *answers)) for text in texts)
            # A conversation that the prompt is a part of says nothing that comes before it.
            asked = name in PROMPT_COLUMNS and len(messages) == 1 and read[0] in texts[:1]
            if not (repeated or asked):
                raise BadRowError(
                    f"column `{name}` holds what {self.form.name} does not read; join it with the prompt, or name it "
                    f"in `columns: {{ignore: [{name}]}}`"
                )

    def _by_name(self, text: str) -> str:
        """A message with the columns' own names."""
        for slot, name in self.needs.items():
            text = text.replace(f"`{slot}`", f"`{name}`")
        return text


_KEYS = {"first": "chosen", "second": "rejected", "answers": "chosen"}
"""The key of `columns` that names a column of this use, where it has another name."""


def recognise(first: Sequence[Raw], forms: Sequence[Form], columns: Columns, cells: Cells) -> Reading | None:
    """The form that most of the first rows have; of two, that of the earlier row. None where no row has any."""
    asked = {key for key, name in columns.model_dump(exclude={"ignore", "positive"}).items() if name is not None}
    known = [form for form in forms if asked - {"prompt", "system"} <= {_KEYS.get(slot, slot) for slot in _slots(form)}]
    known = [form for form in known if all(_names_of(slot, need, columns) for slot, need in form.needs.items())]
    if columns.prompt not in (None, "instruction"):
        # What is joined with an instruction is not joined with a column that the recipe names as the whole prompt.
        known = [form for form in known if "input" not in form.may]
    votes: Counter[int] = Counter()
    readings = [Reading(form, columns, first, cells) for form in known]
    for row in first:
        for index, reading in enumerate(readings):
            try:
                reading.view(row)
            except BadRowError:
                continue
            votes[index] += 1
            break
    if not votes:
        return None
    return Reading(known[votes.most_common(1)[0][0]], columns, first, cells)


def _slots(form: Form) -> set[str]:
    return {*form.needs, *form.may}


def _names_of(slot: str, usual: Slot, columns: Columns) -> tuple[str, ...]:
    named = getattr(columns, _KEYS.get(slot, slot), None)
    return tuple(name for name in usual.names if name not in columns.ignore) if named is None else (named,)


def _name_of(slot: str, usual: Slot, columns: Columns, first: Sequence[Raw]) -> str:
    """The first of a slot's names that holds something in the first rows."""
    names = _names_of(slot, usual, columns)
    present = (name for name in names if any(not is_empty(row.get(name)) for row in first))
    there = (name for name in names if any(name in row for row in first))
    return next(present, None) or next(there, None) or names[0]


def _with_context(found: Any, view: Raw) -> Any:
    """What the form found, with the columns that every form may have."""
    if "system" not in view and "tools" not in view:
        return found
    messages: list[Message] = found.prompt if isinstance(found, Answers) else found
    messages = with_tools(view.get("tools"), with_system(view.get("system"), messages))
    return found._replace(prompt=messages) if isinstance(found, Answers) else messages


def _ignored_keys(first: Sequence[Raw], needs: Mapping[str, str]) -> Iterator[str]:
    """Keys of messages and of ranked answers that are not read, such as `messages.timestamp`."""
    from spa_recipes.data.forms.form import ANSWER_RANKS, ANSWER_SCORES, ANSWER_TEXTS

    read = READ_KEYS | {*ANSWER_TEXTS, *ANSWER_RANKS, *ANSWER_SCORES}
    for name in needs.values():
        for row in first:
            value = row.get(name)
            for item in value if isinstance(value, list | tuple) else [value]:
                if isinstance(item, Mapping):
                    yield from (f"{name}.{key}" for key in item if key not in read and not is_empty(item[key]))


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if key not in ("role", "from", "type"):
                yield from _texts_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts_in(item)
    elif value is not None and not isinstance(value, bool):
        yield str(value)
