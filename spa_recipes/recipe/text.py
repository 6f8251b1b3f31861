"""The text of a recipe: reading the file, and YAML with the place of every key.

How a plain (unquoted) YAML scalar is read, after YAML 1.2 rather than PyYAML's YAML 1.1:

- an integer: decimal digits with an optional sign and no leading zero; it has to fit into 64 bits;
- a number: decimal with a point, an exponent or both, so that `5e-7`, `1e-4`, `2E3`, `.5` and `1.` are numbers;
- `true` and `false` (also `True`, `TRUE`); `yes`, `no`, `on` and `off` are text;
- `null`, `~` or nothing at all: null;
- everything else is text, also `1_000`, `0x10`, `007`, `.inf`, `1:30` and dates; a key that needs a number refuses it.

Anchors, aliases, tags, merge keys, repeated keys and several documents in one file are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from spa_recipes.encoding import remedy, wide_encoding
from spa_recipes.errors import RecipeError
from spa_recipes.recipe.shipped import shipped_names

MAX_BYTES = 1024 * 1024
MAX_DEPTH = 16
MAX_NODES = 10_000

STARTER = "write a starter with `spa init`"
"""The remedy for a recipe that is not there."""

Keys = tuple[str | int, ...]
"""The way to a value: `noise.lambdas.0` is `("noise", "lambdas", 0)`."""

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_NUMBER = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?")
_PLAIN = re.compile(r"[\n\x20-\x7e]*")
_DISPUTED = re.compile(r"^(---|\.\.\.)|[|>][-+0-9]*#|^[^#\n]*\?", re.MULTILINE)
"""A document marker, a comment that touches the sign of a block text, or a question mark: libyaml accepts more of these
than PyYAML does."""
_CONSTANTS = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys(("null", "Null", "NULL", "~", ""), None),
}

# PyYAML's words, ours, and the remedy.
_SYNTAX = (
    (r"found character '\\t'", "a tab", "use spaces"),
    (r"found character '(.)'", r"plain text cannot begin with \1", "put the text in quotes"),
    (
        r"mapping values are not allowed",
        "a second ': ' in this line",
        "check the indentation, or put the text in quotes",
    ),
    (r"could not find expected ':'", "a key without ': '", "write key: value"),
    (
        r"expected <block end>",
        "this line does not fit the lines above",
        "start all keys of a section in the same column",
    ),
    (r"expected the node content", "a value is missing before this character", "check commas and brackets"),
    (r"but found another document", "a second document begins", "keep one recipe in one file"),
)


class Place(NamedTuple):
    """Where a key stands: `file:line`, or `--set key`, with a number to sort by."""

    text: str
    order: int


@dataclass
class Values:
    """The values of a recipe before they are checked, with the place and the spelling of each."""

    root: Any = None
    places: dict[Keys, Place] = field(default_factory=dict)
    written: dict[Keys, str] = field(default_factory=dict)

    def get(self, keys: Keys) -> Any:
        """The value at the end of the keys."""
        node = self.root
        for key in keys:
            node = node[key]
        return node

    def forget(self, keys: Keys) -> None:
        """Remove the places and spellings of a value and of all below it; the value itself stays."""
        for table in (self.places, self.written):
            for old in [k for k in table if k[: len(keys)] == keys]:
                del table[old]

    def shown(self, keys: Keys) -> str:
        """A value for a message: as it was written, or what kind of collection it is."""
        value = self.get(keys)
        if isinstance(value, dict):
            return "a mapping"
        if isinstance(value, list):
            return "a list"
        if isinstance(value, str):
            return repr(value if len(value) <= 60 else value[:57] + "...")
        return self.written.get(keys) or "nothing"


def dotted(keys: Keys) -> str:
    """Keys as a user writes them."""
    return ".".join(str(key) if key != "" else "''" for key in keys)


def split_keys(text: str) -> Keys:
    """The inverse of `dotted`; a decimal name is a position in a list."""
    return tuple(int(key) if key.isdecimal() else key for key in text.split("."))


def is_number(text: str) -> bool:
    """Whether a plain scalar is an integer or a number."""
    return bool(_INTEGER.fullmatch(text) or _NUMBER.fullmatch(text))


def read_text(path: Path, what: str = "recipe", starter: str = STARTER) -> str:
    """Read a file that may be a recipe, or `what` it should be; `starter` says how to begin one.

    Raises:
        RecipeError: it cannot be read, is too large or is not text.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise RecipeError("no such file", where=str(path), fix=_other_file(path, what, starter)) from None
    except IsADirectoryError:
        raise RecipeError(
            f"this is a folder, not a {what}", where=str(path), fix=_other_file(path / "x", what, starter)
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RecipeError(f"cannot be read: {reason}", where=repr(str(path))) from None
    if len(data) > MAX_BYTES:
        problem = f"larger than 1 MiB, which is too large for a {what}"
        raise RecipeError(problem, where=str(path), fix=f"name a YAML {what}")
    if encoding := wide_encoding(data):
        raise RecipeError(f"{encoding} text, not UTF-8", where=str(path), fix=remedy(encoding))
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        what = f"not UTF-8 text: byte {data[error.start]:#04x} at offset {error.start}"
        line = data.count(b"\n", 0, error.start) + 1
        raise RecipeError(what, where=f"{path}:{line}", fix=remedy()) from None


def _other_file(path: Path, what: str, starter: str) -> str:
    """The remedy for a path that cannot be read: a file beside it."""
    import difflib

    try:
        names = sorted(p.name for p in path.parent.iterdir() if p.suffix in {".yaml", ".yml"})
        close = difflib.get_close_matches(path.name, names, n=1)
        if close:
            return f"did you mean {path.parent / close[0]}?"
        listed = True
    except OSError:
        names, listed = [], False
    shipped = difflib.get_close_matches(path.stem, shipped_names() if what == "recipe" else [], n=1, cutoff=0.8)
    if shipped:
        return f"did you mean {shipped[0]}, which is shipped?"
    if not listed:
        return f"the folder {path.parent} cannot be listed; check the path"
    if names:
        return f"{what}s in {path.parent}: {', '.join(names[:8])}"
    return f"check the path, or {starter}"


def parse(text: str, place: Callable[[int], Place]) -> Values:
    """Read one YAML document. Of an empty text the root is None, and its spelling is "".

    Args:
        text: the YAML.
        place: gives the place of a line, counted from 1.

    Raises:
        RecipeError: it is not YAML, or YAML that a recipe may not use.
    """
    if (values := _parse_fast(text, place)) is not None:
        return values
    loader = None
    try:
        loader = _Loader(text, place)
        return loader.read()
    except yaml.MarkedYAMLError as error:
        line, what, fix = _explain(error)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        what, fix = f"the character U+{error.character:04X} is not allowed", "remove it"
    except (ValueError, OverflowError) as error:  # PyYAML lets those of int() and chr() through
        line, what, fix = loader.line + 1 if loader else 1, f"not valid YAML: {error}", "check numbers and \\ escapes"
    raise RecipeError(what, where=place(line).text, fix=fix)


def _parse_fast(text: str, place: Callable[[int], Place]) -> Values | None:
    """`parse` by libyaml, which is twenty times as fast; None where that is not sure to say the same as PyYAML does.

    Its words for mistakes are others, and it takes some tabs and characters that PyYAML refuses.
    """
    if not yaml.__with_libyaml__ or not _PLAIN.fullmatch(text) or _DISPUTED.search(text):
        return None
    try:
        return _FastLoader(text, place).read()
    except (yaml.YAMLError, ValueError, OverflowError):
        return None


class _Refusal(yaml.MarkedYAMLError):
    """YAML that is valid but not allowed in a recipe. It is at a node or event; its note is the remedy."""

    def __init__(self, problem: str, at: Any, fix: str) -> None:
        super().__init__(problem=problem, problem_mark=at.start_mark, note=fix)


def _explain(error: yaml.MarkedYAMLError) -> tuple[int, str, str]:
    """Line, fact and remedy of a syntax error."""
    problem = error.problem or "unknown problem"
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    if isinstance(error, _Refusal):
        return line, problem, error.note or ""
    if re.search("end of stream|<stream end>|document separator", problem) and error.context_mark is not None:
        return error.context_mark.line + 1, "a quote or bracket that opens here is never closed", "close it"
    for pattern, what, fix in _SYNTAX:
        found = re.search(pattern, problem)
        if found:
            return line, found.expand(what), fix
    column = f" (column {mark.column + 1})" if mark else ""
    return line, f"not valid YAML: {problem}{column}", "check the quotes, brackets and indentation"


class _Composer(yaml.composer.Composer, yaml.resolver.Resolver):
    """Composes plain nodes only, without anchors, aliases, tags or deep nesting, and records the place of each.

    The events come from the parser that it is put together with.
    """

    peek_event: Callable[[], Any]

    def __init__(self, place: Callable[[int], Place]) -> None:
        yaml.composer.Composer.__init__(self)
        yaml.resolver.Resolver.__init__(self)
        self.place = place
        self.values = Values()
        self.depth = self.nodes = 0

    def read(self) -> Values:
        """The values of the one document."""
        node = self.get_single_node()
        if node is None:
            return Values(written={(): ""})
        self.values.root = self.convert(node, ())
        return self.values

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise _Refusal("anchors (&) and aliases (*) are not supported", event, "write the value out")
        if getattr(event, "tag", None) is not None:
            raise _Refusal("tags (!) are not supported", event, "remove it")
        if self.depth >= MAX_DEPTH:
            raise _Refusal(f"nested more than {MAX_DEPTH} levels deep", event, "no recipe needs this")
        if self.nodes >= MAX_NODES:
            raise _Refusal(f"more than {MAX_NODES} keys and values", event, "no recipe needs this")
        self.nodes += 1
        self.depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def convert(self, node: yaml.Node, keys: Keys) -> Any:
        """The value of a node. Its places and spellings are recorded under `keys`."""
        self.values.places.setdefault(keys, self.place(node.start_mark.line + 1))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, keys)
        if isinstance(node, yaml.SequenceNode):
            return [self.convert(item, (*keys, i)) for i, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        self.values.written[keys] = node.value
        return _scalar(node)

    def _mapping(self, node: yaml.MappingNode, keys: Keys) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = _key(key_node)
            where = (*keys, key)
            if key in mapping:
                first = self.values.places[where].text
                raise _Refusal(f"the key {key} is repeated, first at {first}", key_node, "remove one of them")
            self.values.places[where] = self.place(key_node.start_mark.line + 1)
            mapping[key] = self.convert(value_node, where)
        return mapping


class _Loader(_Composer, yaml.reader.Reader, yaml.scanner.Scanner, yaml.parser.Parser):
    """Reads YAML by PyYAML."""

    def __init__(self, text: str, place: Callable[[int], Place]) -> None:
        yaml.reader.Reader.__init__(self, text)
        yaml.scanner.Scanner.__init__(self)
        yaml.parser.Parser.__init__(self)
        super().__init__(place)


if yaml.__with_libyaml__:
    _CParser: Any = vars(yaml)["CSafeLoader"].__mro__[1]  # the type stubs do not know it

    class _FastLoader(_Composer, _CParser):  # type: ignore[misc]
        """Reads YAML by libyaml."""

        def __init__(self, text: str, place: Callable[[int], Place]) -> None:
            _CParser.__init__(self, text)
            super().__init__(place)


def _key(node: yaml.Node) -> str:
    key = _scalar(node) if isinstance(node, yaml.ScalarNode) else None
    if not isinstance(key, str):
        raise _Refusal("a key must be text", node, "remove it, or put it in quotes")
    if key == "<<":
        raise _Refusal("merge keys (<<) are not supported", node, "write the keys out")
    return key


def _scalar(node: yaml.ScalarNode) -> Any:
    text = node.value
    if node.style:
        return _text(node)
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INTEGER.fullmatch(text):
        number = int(text) if len(text) < 21 else 2**64
        if not -(2**63) <= number < 2**63:
            raise _Refusal("an integer beyond 64 bits", node, "use a smaller one")
        return number
    return float(text) if _NUMBER.fullmatch(text) else _text(node)


def _text(node: yaml.ScalarNode) -> str:
    """The text of a scalar. JSON escapes a character beyond U+FFFF as two halves, which are joined here."""
    try:
        text = node.value.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise _Refusal("half of a surrogate pair in an escape", node, "remove it") from None
    if "\0" in text:
        raise _Refusal("a NUL character in an escape", node, "remove it")
    return str(text)
