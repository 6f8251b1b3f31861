"""Rows of a JSON file: of an array, of JSON lines, or of an object with one list of rows. Never all of it in memory."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal

from spa_recipes.data.forms.form import kind_of
from spa_recipes.data.opening import open_text
from spa_recipes.data.rows import BOM, not_utf8
from spa_recipes.errors import DataError

_BYTES_AT_ONCE = 1024 * 1024
_LONGEST_VALUE = 256 * 1024 * 1024
_DECODER = json.JSONDecoder()
_SPACE = " \t\r\n"


def layout_of(path: Path) -> Literal["array", "lines", "object"]:
    """How a JSON file holds its rows; `object` for one that spans the file, `array` for whatever begins otherwise.

    Raises:
        DataError: there is no such file, or it is no text.
    """
    with open_text(path) as file:
        start = b""
        while not start and (line := file.readline(_BYTES_AT_ONCE)):
            start = line.removeprefix(BOM).strip()
        if not start.startswith(b"{"):
            return "array"
        more = any(piece.strip() for piece in iter(lambda: file.read(_BYTES_AT_ONCE), b""))
    # A first line that is longer than that is read as an object, and as lines where others follow it.
    return "lines" if more and _is_json(start) else "object"


def elements(path: Path) -> Iterator[Any]:
    """The elements of the array in a file, one after the other.

    Raises:
        DataError: it is none, or not JSON.
    """
    with open_text(path) as file:
        scanner = _Scanner(file, path)
        try:
            if scanner.peek() not in ("[", ""):
                what = f"not an array of objects but a {type(scanner.value()).__name__}"
                raise DataError(what, where=str(path), fix="give an array of objects")
            if scanner.peek():
                yield from scanner.elements()
            scanner.end("there is text behind the end of the array", "give one array of objects")
        except ValueError as error:
            raise _not_json(error, path) from error


def rows_of_object(path: Path) -> Iterator[Any] | None:
    """The elements of the list of rows in a file with one object at the top; None where that object is a row itself, or
    no JSON.

    Raises:
        DataError: it is neither.
    """
    try:
        kinds = _kinds(path)
    except ValueError:
        return None  # reading it as lines names the one that is wrong
    lists = [name for name, kind in kinds.items() if kind == "rows"]
    if len(lists) == 1:
        return _list_of(path, lists[0])
    if "part of a row" in kinds.values():
        return None
    raise DataError(
        f"one object with the keys {', '.join(list(kinds)[:8])} and not a list of rows",
        where=str(path),
        fix="give an array of objects, JSON lines, or an object with one list of rows, such as {data: [...]}",
    )


def _kinds(path: Path) -> dict[str, str]:
    """What each key of the object in a file holds: `rows`, what is a `part of a row`, or something else.

    Raises:
        ValueError: it is not JSON.
    """
    found = {}
    with open_text(path) as file:
        scanner = _Scanner(file, path)
        for name in scanner.names():
            if scanner.peek() == "[":
                kinds = {kind_of([item]) if isinstance(item, dict) else "no row" for item in scanner.elements()}
                found[name] = "rows" if kinds == {"other"} else "part of a row" if "messages" in kinds else ""
            else:
                value = scanner.value()
                found[name] = "part of a row" if isinstance(value, str) or kind_of(value) == "messages" else ""
        if scanner.peek():
            raise ValueError("text behind the object")
    return found


def _list_of(path: Path, wanted: str) -> Iterator[Any]:
    with open_text(path) as file:
        scanner = _Scanner(file, path)
        for name in scanner.names():
            if name == wanted and scanner.peek() == "[":
                yield from scanner.elements()
                return
            scanner.skip()


class _Scanner:
    """Reads JSON value by value. All methods raise ValueError for what is not JSON, or cut off."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._pieces, self._path = decoded(file, path), path
        self._text, self._place = next(self._pieces, "").removeprefix(BOM.decode()), 0

    def peek(self) -> str:
        """The next character that is no white space; empty at the end of the file."""
        while True:
            while self._place < len(self._text) and self._text[self._place] in _SPACE:
                self._place += 1
            if self._place < len(self._text):
                return self._text[self._place]
            if not self._more():
                return ""

    def take(self, wanted: str) -> None:
        """Go on behind a character, which must be the next one."""
        if (found := self.peek()) != wanted:
            raise ValueError(f"{wanted!r} is missing before {found!r}" if found else "it is cut off")
        self._place += 1

    def value(self) -> Any:
        """The next value."""
        while True:
            try:
                self.peek()
                value, end = _DECODER.raw_decode(self._text, self._place)
                if end == len(self._text) and self._more():  # a number may go on
                    continue
            except RecursionError as error:
                raise DataError("JSON is nested too deeply", where=str(self._path)) from error
            except ValueError:
                if not self._more():
                    raise
            else:
                self._place = end
                return value

    def elements(self) -> Iterator[Any]:
        """The elements of the next value, which is an array."""
        self.take("[")
        while self.peek() != "]":
            yield self.value()
            if self.peek() != "]":
                self.take(",")
        self.take("]")

    def names(self) -> Iterator[str]:
        """The keys of the next value, an object; whoever asks for the next key has read the value of this one."""
        self.take("{")
        while self.peek() != "}":
            name = str(self.value())
            self.take(":")
            yield name
            if self.peek() != "}":
                self.take(",")
        self.take("}")

    def skip(self) -> None:
        """Go on behind the next value."""
        if self.peek() == "[":
            for _ in self.elements():
                pass
        else:
            self.value()

    def end(self, what: str, fix: str) -> None:
        """Refuse text that comes now."""
        if self.peek():
            raise DataError(what, where=str(self._path), fix=fix)

    def _more(self) -> bool:
        """Read on. Pieces grow with what is pending, so that a long value is not parsed again and again."""
        pending = self._text[self._place :]
        if len(pending) > _LONGEST_VALUE:
            what = f"one value has more than {_LONGEST_VALUE // 1024**2} MiB"
            raise DataError(what, where=str(self._path), fix="give an array of objects, or JSON lines")
        pieces = [pending]
        for _ in range(1 + len(pending) // _BYTES_AT_ONCE):
            pieces.append(next(self._pieces, ""))
        self._text, self._place = "".join(pieces), 0
        return len(self._text) > len(pending)


def decoded(file: IO[bytes], path: Path) -> Iterator[str]:
    """The text of a file in pieces, wherever its lines end.

    Raises:
        DataError: it is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    before, line = 0, 1
    while True:
        piece = file.read(_BYTES_AT_ONCE)
        pending, _ = decoder.getstate()
        try:
            text = decoder.decode(piece, final=not piece)
        except UnicodeDecodeError as error:
            line += (pending + piece)[: error.start].count(b"\n")
            raise not_utf8(error, before - len(pending), f"{path}:{line}") from error
        before += len(piece)
        line += piece.count(b"\n")
        if text:
            yield text
        if not piece:
            return


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _not_json(error: Exception, path: Path) -> DataError:
    fix = "give an array of objects, or JSON lines"
    return DataError(f"not JSON, or cut off ({error})", where=str(path), fix=fix)
