"""Rows that are alike become canonical rows together: many rows at the cost of few.

The rules of `forms` look at the columns of a row, at roles, numbers and labels. Into a text they look for a few marks
only (`_LOOKED_FOR`), and they compare the texts of a row with one another. So what they make of one row, they make of
each row that differs from it in plain texts only. They read the first row of each pattern, and once more with texts
that are known again in what they make; the rows that follow get their own texts in these places, column by column.
A row that is odd in any way is left to the rules, and so are all rows of a pattern of which nothing follows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, islice
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from spa_recipes.data import arrow
from spa_recipes.data.files import RawRow
from spa_recipes.data.forms.answers import SCORES
from spa_recipes.data.forms.form import ANSWER_TEXTS, TRANSCRIPT_STARTS, BadRowError, NoPairError, Raw, is_empty
from spa_recipes.data.forms.messages import SERIALISED_STARTS, TRANSCRIPTS
from spa_recipes.data.forms.reading import Reading
from spa_recipes.data.rows import prompt_ids_alike

Finish = Callable[[Any, Raw, int], Mapping[str, Any]]
Make = Callable[[RawRow], Mapping[str, Any] | None]

_TEXT_USES = frozenset(
    ("prompt", "chosen", "rejected", "first", "second", "answers", "output", "system", "input", "history", "id")
)
"""Uses of columns that hold texts; elsewhere, as in a column of labels, a string is a part of the pattern."""
_TEXT_KEYS = frozenset(("content", "value", *ANSWER_TEXTS))
"""Keys of texts in the objects of such a column."""
_NUMBER_USES = frozenset((*SCORES, "margin", "weight"))
"""Uses of columns whose numbers only pass through."""
_LOOKED_FOR = "|".join(
    [f"^{re.escape(start)}" for start in (*SERIALISED_STARTS, *TRANSCRIPT_STARTS)]
    + [re.escape(mark) for _, mark in TRANSCRIPTS]
)
"""What the rules look for in a text. Of the two marks of a transcript, one is enough to leave the row to them."""
_MOST_TEXTS = 11  # a pattern has a bit for each two of them, 55 of an int64
_MOST_SHAPES = 1000
_LONGEST = 64
"""The longest string, in characters, and the longest list that are a part of a pattern."""
FEW_ROWS = 16
"""Of a shape in a batch: the rules read them as fast as Arrow does."""
_LARGEST_NUMBER = 2.0**53
_TEXT, _NUMBER = object(), object()
_STRINGS = {str}


class _OddError(Exception):
    """A row has what no pattern describes."""


class _Column(NamedTuple):
    """A column that is read: its uses, and whether its texts and its numbers may differ within a pattern."""

    name: str
    uses: list[str]
    texts: bool
    numbers: bool


class _Shape:
    """Rows that differ in texts and numbers only.

    Attributes:
        names: of the columns of a row.
        read: the columns that are read.
        values: of these, with `_TEXT` and `_NUMBER` for texts and numbers.
        texts: how many texts a row has.
        templates: by which texts of a row are equal; None where the rules make no row, or one of other texts.
    """

    def __init__(self, names: tuple[str, ...], read: list[_Column], values: tuple[Any, ...], texts: int) -> None:
        self.names = names
        self.read = read
        self.values = values
        self.texts = texts
        self.templates: dict[int, _Template | None] = {}

    @property
    def numbers(self) -> list[str]:
        """The uses of the columns with numbers."""
        return [column.uses[0] for column, value in zip(self.read, self.values, strict=True) if value is _NUMBER]

    def row(self, texts: Sequence[str], numbers: Sequence[float]) -> dict[str, Any]:
        """A row of this shape."""
        row: dict[str, Any] = dict.fromkeys(self.names)
        texts_left, numbers_left = iter(texts), iter(numbers)
        for column, value in zip(self.read, self.values, strict=True):
            row[column.name] = next(numbers_left) if value is _NUMBER else _filled(value, texts_left)
        return row


class _Layout(NamedTuple):
    """Rows with the same columns: those that are read, those that are to be empty, and the shapes of such rows.

    Attributes:
        texts: the shape of rows that hold a text in each column that is read; None where one is of another use.
    """

    names: tuple[str, ...]
    read: list[_Column]
    empty: list[str]
    texts: _Shape | None
    shapes: dict[tuple[Any, ...], _Shape]


class _Messages(NamedTuple):
    """A list of messages: their roles, and the places of their texts."""

    roles: list[str]
    texts: list[int]


class _Texts(NamedTuple):
    """A list of texts, by their places."""

    texts: list[int]


class _Text(NamedTuple):
    """One text."""

    place: int


class _Number(NamedTuple):
    """One number."""

    place: int


class _Template(NamedTuple):
    """What the rules make of the rows of a pattern: what each column of the canonical row holds, else a constant."""

    columns: dict[str, Any]


class _Group:
    """The rows of a batch that have the same shape: their places in it, their texts and numbers."""

    def __init__(self) -> None:
        self.places: list[int] = []
        self.texts: list[Sequence[str]] = []
        self.numbers: list[Sequence[float]] = []
        self.arrays: list[pa.Array] = []

    def patterns(self, looked_for: str) -> Iterator[tuple[int, list[int]]]:
        """The places of rows whose texts are plain, by which of these are equal: a bit for each two of a row.

        Args:
            looked_for: an expression that a plain text does not have.
        """
        if len(self.places) < FEW_ROWS or not self.texts[0]:
            return
        columns = list(zip(*self.texts, strict=True))
        try:
            self.arrays = [pa.array(texts, arrow.TEXT) for texts in columns]
        except UnicodeEncodeError:  # half a surrogate pair somewhere
            return
        plain = np.ones(len(self.places), dtype=bool)
        for texts, array in zip(columns, self.arrays, strict=True):
            plain &= ~_flags(pc.match_substring_regex(array, looked_for))
            if any(map(str.isspace, texts)):
                plain &= ~np.array([text.isspace() for text in texts])
        codes: NDArray[np.int64] = np.zeros(len(self.places), dtype=np.int64)
        for bit, (one, other) in enumerate(combinations(self.arrays, 2)):
            codes |= _flags(pc.equal(one, other)).astype(np.int64) << bit
        places = np.array(self.places)
        for code in np.unique(codes[plain]).tolist():
            yield code, places[plain & (codes == code)].tolist()

    def rows(self, template: _Template, places: list[int], rows: list[int], schema: pa.Schema) -> pa.RecordBatch:
        """The canonical rows of the rows at some places, which have these numbers in the source."""
        arrays, texts, numbers = self.arrays, self.texts, self.numbers
        if len(places) < len(self.places):
            inside = np.searchsorted(self.places, places)
            arrays = [array.take(pa.array(inside)) for array in arrays]
            texts, numbers = [texts[place] for place in inside], [numbers[place] for place in inside]
        columns = []
        for field in schema:
            value = template.columns.get(field.name)
            if field.name == "row":
                column = pa.array(rows, field.type)
            elif field.name == "prompt_id":
                column = pa.array(_names(template.columns["prompt"], texts), field.type)
            elif isinstance(value, _Messages):
                column = arrow.messages_alike(value.roles, [arrays[place] for place in value.texts])
            elif isinstance(value, _Texts):
                column = arrow.texts_alike([arrays[place] for place in value.texts])
            elif isinstance(value, _Text):
                column = arrays[value.place]
            elif isinstance(value, _Number):
                column = pa.array([row[value.place] for row in numbers], field.type)
            else:
                column = pa.repeat(pa.scalar(value, field.type), len(rows))
            columns.append(column)
        return pa.RecordBatch.from_arrays(columns, schema=schema)


class Alike:
    """Makes canonical rows.

    Args:
        reading: the form of the rows.
        finish: what makes a canonical row of what the form found.
        make: the rules for one row as a whole; None for a row that gives nothing.
        schema: columns of the canonical rows.
        looked_for: what `finish` looks for in a text, beside what the rules do.
    """

    def __init__(
        self, reading: Reading, finish: Finish, make: Make, schema: pa.Schema, looked_for: Sequence[str] = ()
    ) -> None:
        self.reading = reading
        self.finish = finish
        self.make = make
        self.schema = schema
        self._looked_for = "|".join([_LOOKED_FOR, *map(re.escape, looked_for)])
        self._layouts: dict[tuple[str, ...], _Layout] = {}
        self._shapes = 0

    def batches(self, raws: Iterator[RawRow]) -> Iterator[pa.RecordBatch]:
        """The canonical rows of a source, in its order."""
        while some := list(islice(raws, arrow.ROWS_PER_BATCH)):
            yield from self._batch(some)

    def _batch(self, raws: Sequence[RawRow]) -> Iterator[pa.RecordBatch]:
        groups = self._groups(raws)
        patterns: list[tuple[_Shape, int] | None] = [None] * len(raws)
        for shape, group in groups.items():
            for code, places in group.patterns(self._looked_for):
                if len(places) == len(raws) and (template := shape.templates.get(code)) is not None:
                    yield group.rows(template, places, [raw.row for raw in raws], self.schema)
                    return
                for place in places:
                    patterns[place] = shape, code
        alike, made = self._made(raws, patterns)
        parts, order = [], []
        for (shape, code), places in alike.items():
            template = shape.templates[code]
            assert template is not None
            parts.append(groups[shape].rows(template, places, [raws[place].row for place in places], self.schema))
            order += places
        if made:
            parts.append(arrow.batch_of(list(made.values()), self.schema))
            order += made
        if len(parts) > 1:
            yield from pa.Table.from_batches(parts).take(pa.array(np.argsort(order))).combine_chunks().to_batches()
        else:
            yield from parts

    def _made(
        self, raws: Sequence[RawRow], patterns: Sequence[tuple[_Shape, int] | None]
    ) -> tuple[dict[tuple[_Shape, int], list[int]], dict[int, Mapping[str, Any]]]:
        """The places of rows whose pattern has a template, and the canonical rows of the others by their places."""
        alike: dict[tuple[_Shape, int], list[int]] = {}
        made: dict[int, Mapping[str, Any]] = {}
        for place, pattern in enumerate(patterns):
            if pattern in alike or (pattern is not None and pattern[0].templates.get(pattern[1]) is not None):
                alike.setdefault(pattern, []).append(place)
                continue
            row = self.make(raws[place])
            if row is not None:
                made[place] = row
            if pattern is not None and pattern[1] not in pattern[0].templates:
                shape, code = pattern
                shape.templates[code] = None if row is None else self._template(shape, code)
        return alike, made

    def _groups(self, raws: Sequence[RawRow]) -> dict[_Shape, _Group]:
        """Rows by their shape, without those that are odd."""
        if (alike := self._of_texts(raws)) is not None:
            return alike
        groups: dict[_Shape, _Group] = {}
        cells = self.reading.cells
        for place, raw in enumerate(raws):
            if raw.value is None:
                continue
            try:
                row = cells.decode(dict(raw.value)) if cells.decodes else raw.value
                shape, texts, numbers = self._shape(row)
            except (BadRowError, _OddError, RecursionError):
                continue
            group = groups.get(shape)
            if group is None:
                group = groups[shape] = _Group()
            group.places.append(place)
            group.texts.append(texts)
            group.numbers.append(numbers)
        return groups

    def _of_texts(self, raws: Sequence[RawRow]) -> dict[_Shape, _Group] | None:
        """Rows of a batch that all have the same columns, and texts in all that are read; None for another batch."""
        rows = [raw.value for raw in raws if raw.value]
        if self.reading.cells.decodes or len(rows) < len(raws):
            return None
        names = tuple(rows[0])
        layout = self._layouts.get(names)  # which a batch before this one has found
        if layout is None or layout.texts is None or layout.empty or len(layout.read) < 2:
            return None
        if {*map(tuple, rows)} != {names}:
            return None
        group = _Group()
        texts_of: Callable[[Any], tuple[str, ...]] = itemgetter(*(column.name for column in layout.read))
        group.texts = list(map(texts_of, rows))
        if any("" in column or {*map(type, column)} != _STRINGS for column in zip(*group.texts, strict=True)):
            return None
        group.places, group.numbers = list(range(len(rows))), [()] * len(rows)
        return {layout.texts: group}

    def _shape(self, row: Raw) -> tuple[_Shape, Sequence[str], Sequence[float]]:
        """The shape of a row, its texts and its numbers."""
        names = tuple(row)
        layout = self._layouts.get(names) or self._layout(names)
        for name in layout.empty:
            if not is_empty(row[name]):
                raise _OddError
        held = [row[column.name] for column in layout.read]
        if layout.texts is not None and "" not in held and {*map(type, held)} == _STRINGS:
            return layout.texts, held, ()
        values: list[Any] = []
        texts: list[str] = []
        numbers: list[float] = []
        for column, value in zip(layout.read, held, strict=True):
            if column.numbers and type(value) in (int, float) and abs(value) <= _LARGEST_NUMBER:
                numbers.append(float(value))
                values.append(_NUMBER)
            else:
                values.append(_structure(value, texts, has_texts=column.texts))
        if len(texts) > _MOST_TEXTS:
            raise _OddError
        key = tuple(values)
        shape = layout.shapes.get(key)
        if shape is None:
            self._limit()
            shape = layout.shapes[key] = _Shape(layout.names, layout.read, key, len(texts))
        return shape, texts, numbers

    def _layout(self, names: tuple[str, ...]) -> _Layout:
        used, empty = self.reading.looked_at(names)
        self._limit()
        uses: dict[str, list[str]] = {}
        for use, name in used:
            uses.setdefault(name, []).append(use)
        read = [_Column(name, of, _TEXT_USES.issuperset(of), len(of) == 1 and of[0] in _NUMBER_USES)
                for name, of in uses.items()]  # fmt: skip
        texts = None
        if all(column.texts for column in read) and len(read) <= _MOST_TEXTS:
            texts = _Shape(names, read, (_TEXT,) * len(read), len(read))
        layout = self._layouts[names] = _Layout(
            names, read, empty, texts, {} if texts is None else {texts.values: texts}
        )
        return layout

    def _limit(self) -> None:
        """Where nearly every row has another structure, no more of them are kept."""
        if self._shapes == _MOST_SHAPES:
            raise _OddError
        self._shapes += 1

    def _template(self, shape: _Shape, code: int) -> _Template | None:
        """What the rules make of the rows of a pattern, from a row whose texts and numbers are known again."""
        firsts = _firsts(code, shape.texts)
        names = [f"plain text {place}" for place in firsts]
        numbers = {use: place + 0.5 for place, use in enumerate(shape.numbers)}
        try:
            found, view = self.reading.parse(shape.row(names, list(numbers.values())))
            made = self.finish(found, view, 0)
            texts = dict(zip(names, firsts, strict=True))
            return _Template({field.name: _held(field, made.get(field.name), texts, numbers) for field in self.schema})
        except (BadRowError, NoPairError, _OddError):
            return None


def _structure(value: Any, texts: list[str], *, has_texts: bool) -> Any:
    """What a value is but for its texts, which are added to the list."""
    kind = type(value)
    if kind is str:
        if has_texts and value:
            texts.append(value)
            return _TEXT
        if len(value) <= _LONGEST:
            return value
    elif kind is dict:
        return dict, tuple(value), tuple([
            _structure(inner, texts, has_texts=has_texts and (key in _TEXT_KEYS or type(inner) is not str))
            for key, inner in value.items()
        ])  # fmt: skip
    elif kind is list:
        if len(value) <= _LONGEST:
            return list, tuple([_structure(inner, texts, has_texts=has_texts) for inner in value])
    elif value is None or kind in (bool, int, float):
        return kind, value  # as 1, 1.0 and true are equal
    raise _OddError


def _filled(value: Any, texts: Iterator[str]) -> Any:
    """The value of a structure with texts in their places."""
    if value is _TEXT:
        return next(texts)
    if isinstance(value, str):
        return value
    if value[0] is dict:
        return dict(zip(value[1], [_filled(inner, texts) for inner in value[2]], strict=True))
    return [_filled(inner, texts) for inner in value[1]] if value[0] is list else value[1]


def _firsts(code: int, texts: int) -> list[int]:
    """For each text of a row, the place of the first one that is equal, by their pattern."""
    firsts = list(range(texts))
    for bit, (one, other) in enumerate(combinations(range(texts), 2)):
        if code >> bit & 1:
            firsts[other] = min(firsts[other], one)
    return firsts


def _held(field: pa.Field, value: Any, texts: Mapping[str, int], numbers: Mapping[str, float]) -> Any:
    """What a column of a canonical row holds.

    Raises:
        _OddError: other texts or numbers than those of the row.
    """
    if field.name in ("row", "prompt_id") or value is None:
        return None
    try:
        if field.type == arrow.MESSAGES:
            if any(message.keys() != {"role", "content"} for message in value):
                raise _OddError
            return _Messages([m["role"] for m in value], [texts[m["content"]] for m in value])
        if pa.types.is_large_list(field.type):
            return _Texts([texts[text] for text in value])
        if field.type == arrow.TEXT:
            return _Text(texts[value])
    except KeyError:
        raise _OddError from None
    if field.name in numbers and value == numbers[field.name]:
        return _Number(list(numbers).index(field.name))
    if value in numbers.values():
        raise _OddError
    return value


def _names(prompt: _Messages, texts: Sequence[Sequence[str]]) -> list[str]:
    return prompt_ids_alike(prompt.roles, [[row[place] for row in texts] for place in prompt.texts])


def _flags(array: pa.Array) -> NDArray[np.bool_]:
    flags: NDArray[np.bool_] = array.to_numpy(zero_copy_only=False)
    return flags
