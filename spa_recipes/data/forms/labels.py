"""What the values of a label column mean. It is decided on the whole column, and a column of two meanings is refused.

Two kinds of columns: `preference` says which of two answers is better, `verdict` whether the one answer is good.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from spa_recipes.data.forms.form import BadRowError, is_number

_TIES = frozenset(
    ("tie", "tie (bothbad)", "tie (both bad)", "both", "both bad", "bothbad", "neither", "equal", "same", "draw")
)
_GOOD = frozenset(("true", "yes", "good", "positive", "desirable", "thumbs_up", "upvote", "like"))
_BAD = frozenset(("false", "no", "bad", "negative", "undesirable", "thumbs_down", "downvote", "dislike"))
_PREFIXES = ("response_", "model_", "output_", "answer_", "completion_", "assistant_", "response", "model", "output")
_MOST_NAMES = 20  # different texts in a label column; more of them are no labels


class Side(NamedTuple):
    """What a value means: 0 and 1 are the first and the second answer (or good and bad), None is a tie."""

    answer: int | None


TIE = Side(None)
Read = Callable[[Any], Side]


class Meaning(NamedTuple):
    """How the values of a column are read, and that in words; `read` raises BadRowError for one without a meaning."""

    read: Read
    words: str


class AmbiguousLabelsError(Exception):
    """What a column holds, where that has no meaning or more than one."""


class Values:
    """The different values of a column. Numbers beyond the first hundred only widen the range."""

    def __init__(self) -> None:
        self.names: Counter[str] = Counter()
        self.numbers: set[float] = set()
        self.flags: set[bool] = set()
        self.others = 0

    def add(self, value: Any) -> None:
        value = normal(value)
        if value is None:
            return
        if isinstance(value, bool):
            self.flags.add(value)
        elif isinstance(value, str):
            if value in self.names or len(self.names) <= _MOST_NAMES:
                self.names[value] += 1
        elif is_number(value):
            self.numbers.add(value)
            if len(self.numbers) > 100:
                whole = all(number == int(number) for number in self.numbers)
                kept = {min(self.numbers), max(self.numbers)}
                self.numbers = kept if whole else kept | {min(self.numbers) + 0.5**20}
        else:
            self.others += 1

    def __str__(self) -> str:
        shown = [*(f"{name!r}" for name in self.names), *(f"{number:g}" for number in sorted(self.numbers))]
        shown += [str(flag) for flag in sorted(self.flags)] + (["lists or objects"] if self.others else [])
        return ", ".join(shown[:8]) + (", ..." if len(shown) > 8 else "") or "nothing"

    @property
    def only_numbers(self) -> bool:
        return bool(self.numbers) and not (self.names or self.flags or self.others)

    @property
    def only_names(self) -> bool:
        return bool(self.names) and not (self.numbers or self.flags or self.others)


def normal(value: Any) -> Any:
    """A label as it is compared: texts in small letters without spaces around, numbers in text as numbers."""
    if isinstance(value, str):
        text = value.strip().lower()
        try:
            number = float(text)
        except ValueError:
            return text or None
        return number if number == number and abs(number) != float("inf") else text
    if isinstance(value, bool) or value is None:
        return value
    if is_number(value):
        number = float(value)
        return number if number == number and abs(number) != float("inf") else None
    return value if isinstance(value, list | dict) else str(value)


def preference(values: Values, columns: Sequence[str], positive: Any, first_is: float | None) -> Meaning:
    """How a column says which of two answers is better.

    Args:
        values: all of the column.
        columns: the two columns of the answers.
        positive: the value that says that the first one is better, by the recipe; None if it names none.
        first_is: the same, by the form.

    Raises:
        AmbiguousLabelsError: it has no meaning, or more than one.
    """
    first, second = columns
    if positive is not None:
        return _by_positive(values, normal(positive), f"the first answer (`{first}`)", f"the second (`{second}`)")
    if values.only_names:
        sides = {name: _named_side(name, columns) for name in values.names}
        read = _shifted(sides)
        if read is not None:
            return Meaning(_table(read), f"by the names of the answers, `{first}` and `{second}`")
    if first_is is not None and values.only_numbers:
        low, high = (-3.0, 3.0) if first_is < 0 else (0.0, 1.0)
        if low <= min(values.numbers) and max(values.numbers) <= high:
            return _scale(low, high, first_is, f"`{first}`", f"`{second}`")
    if values.only_numbers and {1.0, 2.0} <= values.numbers <= {1.0, 1.5, 2.0}:
        return _scale(1.0, 2.0, 1.0, f"`{first}`", f"`{second}`")
    raise AmbiguousLabelsError(str(values))


def verdict(values: Values, positive: Any) -> Meaning:
    """How a column says whether an answer is good: side 0 is good, side 1 is bad.

    Raises:
        AmbiguousLabelsError: it has no meaning, or more than one.
    """
    if positive is not None:
        return _by_positive(values, normal(positive), "good", "bad")
    if values.flags and not (values.names or values.numbers or values.others):
        return Meaning(_table({True: Side(0), False: Side(1)}), "true is good")
    if values.only_names and values.names.keys() <= _GOOD | _BAD:
        return Meaning(_table({name: Side(int(name in _BAD)) for name in values.names}), "by its words")
    if values.only_numbers and values.numbers <= {0.0, 1.0}:
        return _scale(0.0, 1.0, 1.0, "good", "bad")
    if values.only_numbers and values.numbers == {-1.0, 1.0}:
        return _scale(-1.0, 1.0, 1.0, "good", "bad")
    raise AmbiguousLabelsError(str(values))


def _by_positive(values: Values, positive: Any, one: str, other: str) -> Meaning:
    """The meaning by the value that a recipe names: one of two names, or an end of a scale of numbers."""
    if isinstance(positive, bool) and values.only_numbers:
        positive = float(positive)
    if isinstance(positive, float):
        if not values.only_numbers:
            raise AmbiguousLabelsError(str(values))
        low, high = _range(values.numbers, positive)
        if positive not in (low, high) or low == high:
            raise AmbiguousLabelsError(f"{values}, and {positive:g} is no end of it")
        return _scale(low, high, positive, one, other)
    known = {*values.names, *values.flags}
    rest = {value for value in known if value != positive and value not in _TIES}
    if positive not in known or len(rest) > 1 or values.numbers or values.others:
        raise AmbiguousLabelsError(str(values))
    sides: dict[Any, Side] = dict.fromkeys(known, TIE) | {positive: Side(0)} | {value: Side(1) for value in rest}
    return Meaning(_table(sides), f"{positive} is {one}")


def _range(numbers: set[float], positive: float) -> tuple[float, float]:
    """The ends of a scale: of shares 0 and 1, of signed numbers alike on both sides, else the extremes."""
    low, high = min(*numbers, positive), max(*numbers, positive)
    if low < 0 < high or (low < 0 and high == 0):
        far = max(-low, high)
        # The sign of a signed scale is what counts, so any number on the named side stands for its end.
        return (-far, positive) if positive > 0 else (positive, far)
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    return low, high


def _scale(low: float, high: float, positive: float, one: str, other: str) -> Meaning:
    """Numbers on the side of `positive` from the middle mean `one`, and the middle is a tie."""
    middle = 0.0 if low < 0 < high else (low + high) / 2

    def read(value: Any) -> Side:
        number = normal(value)
        if not isinstance(number, float):
            raise BadRowError(f"the label {value!r} is no number"[:100])
        return TIE if number == middle else Side(0 if (number > middle) == (positive > middle) else 1)

    above, below = (one, other) if positive > middle else (other, one)
    return Meaning(read, f"above {middle:g} is {above}, below {below}")


def _table(sides: dict[Any, Side]) -> Read:
    def read(value: Any) -> Side:
        found = normal(value)
        if isinstance(found, list | dict) or found not in sides:
            raise BadRowError(f"the label {value!r} has no meaning"[:100])
        return sides[found]

    return read


def _named_side(name: str, columns: Sequence[str]) -> Side | str | None:
    """The answer that a text names, or the number in it, which may count from 0 or from 1; None for no answer."""
    if name in _TIES:
        return TIE
    lower = [column.lower() for column in columns]
    if name in lower:
        return Side(lower.index(name))
    short = next((name[len(prefix) :] for prefix in _PREFIXES if name.startswith(prefix)), name)
    if short in ("a", "first", "b", "second"):
        return Side(int(short in ("b", "second")))
    return short if short in ("0", "1", "2") and short != name else None


def _shifted(sides: dict[str, Side | str | None]) -> dict[Any, Side] | None:
    """Sides with the numbers among them counted from 0 or 1; None where that is not clear."""
    numbers = {side for side in sides.values() if isinstance(side, str)}
    if None in sides.values() or {"0", "2"} <= numbers or numbers == {"1"}:
        return None
    start = 0 if "0" in numbers else 1
    read = {name: Side(int(side) - start) if isinstance(side, str) else side for name, side in sides.items()}
    return None if all(side == TIE for side in read.values()) else {k: v for k, v in read.items() if v is not None}
