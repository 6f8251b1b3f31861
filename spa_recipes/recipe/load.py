"""Reads a recipe: YAML with positions, `--set` overrides, and one readable line for each thing that is wrong.

How a plain (unquoted) YAML scalar is read, after YAML 1.2 rather than PyYAML's YAML 1.1:

- an integer: decimal digits with an optional sign and no leading zero; it has to fit into 64 bits;
- a number: decimal with a point, an exponent or both, so that `5e-7`, `1e-4`, `2E3`, `.5` and `1.` are numbers;
- `true` and `false` (also `True`, `TRUE`); `yes`, `no`, `on` and `off` are text;
- `null`, `~` or nothing at all: null;
- everything else is text: `1_000`, `0x10`, `007`, `.inf`, `1:30` and dates too, and a key that wants a number says so.

Anchors, aliases, tags, merge keys, repeated keys and several documents in one file are refused. Relative paths in a
recipe (models, data files) are relative to the current folder, as on a command line.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from spa_recipes.errors import RecipeError
from spa_recipes.recipe.schema import Recipe

MAX_BYTES = 1024 * 1024
MAX_DEPTH = 16
MAX_NODES = 10_000
MAX_PROBLEMS = 20

Keys = tuple[str | int, ...]
"""The way to a value: `noise.lambdas.0` is `("noise", "lambdas", 0)`."""

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_NUMBER = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?")
_CONSTANTS = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys(("null", "Null", "NULL", "~", ""), None),
}
_YES_NO = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}

# A required key is best explained by an example. A test keeps the table complete.
_EXAMPLES = {
    "name": "name: my-run",
    "model": "model: {model_name_or_path: HuggingFaceTB/SmolLM2-135M-Instruct}",
    "model_name_or_path": "model_name_or_path: HuggingFaceTB/SmolLM2-135M-Instruct",
    "data": "data: {pairs: {type: dataset, source: pairs.jsonl}}",
    "data.pairs": "pairs: {type: dataset, source: pairs.jsonl}",
    "data.prompts": "prompts: {type: dataset, source: prompts.jsonl}",
    "source": "source: pairs.jsonl",
    "sft.data": "data: {type: dataset, source: conversations.jsonl}",
    "tau": "tau: 0.3",
    "num_processes": "num_processes: 4",
    "type": "type: dataset",
}

# Names that people bring along from other tools and that are spelled too differently for a guess.
_OTHER_NAMES = {
    "lr": "learning_rate",
    "epochs": "num_train_epochs",
    "batch_size": "global_batch_size",
    "gradient_accumulation_steps": "global_batch_size",
    "max_new_tokens": "max_tokens",
    "num_return_sequences": "n",
    "model_name": "model_name_or_path",
    "torch_dtype": "dtype",
    "iterations": "prompts_per_iteration",
}


class LoadedRecipe(NamedTuple):
    """A checked recipe, and the file it came from."""

    recipe: Recipe
    path: Path
    text: str


class InvalidRecipeError(RecipeError):
    """A recipe breaks rules: the message is about the first problem, `others` are about the other ones."""

    others: Sequence[RecipeError] = ()


class _Place(NamedTuple):
    """Where a key stands: `file:line`, or `--set key`, with a number to sort by."""

    text: str
    order: int


class _Values(NamedTuple):
    """What a recipe says before it is checked, with the place and the spelling of everything."""

    root: Any
    places: dict[Keys, _Place]
    written: dict[Keys, str]


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read and check a recipe file.

    Args:
        path: the YAML file.
        overrides: `key=value` texts as of `--set`, applied in their order: the key is a dotted path (`noise.alpha`,
            `noise.lambdas.0`), the value a YAML scalar or flow collection. A section that the recipe leaves out is
            created. `judge.type=gold` changes that key only; `judge={type: gold}` replaces the whole section.

    Raises:
        RecipeError: the file cannot be read as a recipe.
        InvalidRecipeError: values are wrong; it is about the first one, its `others` about the other ones.
    """
    text = _read_text(path)
    values = _parse(text, lambda line: _Place(f"{path}:{line}", line))
    if values is None:
        raise RecipeError("the recipe is empty", where=str(path), fix="write a starter with `spa init`")
    if not isinstance(values.root, dict):
        raise RecipeError(
            f"a recipe is a mapping of keys to values, not {_shown(values, ())}",
            where=f"{path}:1",
            fix=f"begin with {_EXAMPLES['name']}",
        )
    for number, override in enumerate(overrides):
        _override(values, override, order=text.count("\n") + 2 + number)
    try:
        return LoadedRecipe(Recipe.model_validate(values.root), path, text)
    except ValidationError as error:
        raise _gather(_problems(error.errors(include_url=False), values, path)) from None


def resolved(recipe: Recipe) -> dict[str, Any]:
    """The recipe with all defaults filled in, ready for JSON."""
    return recipe.model_dump(mode="json")


def recipe_schema() -> dict[str, Any]:
    """The JSON Schema of recipes (draft 2020-12), for editors."""
    schema = json.loads(json.dumps(_schema()))
    for tagged in _tagged_unions(schema):
        for target in tagged["discriminator"]["mapping"].values():
            member = schema["$defs"][target.rpartition("/")[2]]
            member["required"] = sorted({"type", *member.get("required", ())})
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "spa-recipes recipe"}


# ---------------------------------------------------------------------------------------------- the file


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise RecipeError("no such file", where=str(path), fix=_other_recipe(path)) from None
    except IsADirectoryError:
        raise RecipeError("this is a folder, not a recipe", where=str(path), fix=_other_recipe(path / "x")) from None
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"cannot be read: {getattr(error, 'strerror', None) or error}", where=repr(str(path))
        ) from None
    if len(data) > MAX_BYTES:
        raise RecipeError("larger than 1 MiB, which no recipe is", where=str(path), fix="name a YAML recipe")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise RecipeError(
            f"not UTF-8 text: byte {data[error.start]:#04x} at offset {error.start}",
            where=f"{path}:{line}",
            fix="save the file as UTF-8",
        ) from None


def _other_recipe(path: Path) -> str:
    """The remedy for a path that is no recipe: a file beside it."""
    try:
        names = sorted(p.name for p in path.parent.iterdir() if p.suffix in {".yaml", ".yml"})
    except OSError:
        return f"the folder {path.parent} cannot be listed; check the path"
    close = difflib.get_close_matches(path.name, names, n=1)
    if close:
        return f"did you mean {path.parent / close[0]}?"
    if names:
        return f"recipes in {path.parent}: {', '.join(names[:8])}"
    return "check the path, or write a starter with `spa init`"


# ---------------------------------------------------------------------------------------------- YAML


class _Loader(yaml.SafeLoader):
    """Composes plain nodes only: no anchors, aliases or tags, no deep nesting."""

    depth = 0
    nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise _refusal("anchors (&) and aliases (*) are not supported", event.start_mark, "write the value out")
        if getattr(event, "tag", None) is not None:
            raise _refusal("tags (!) are not supported", event.start_mark, "remove it")
        if self.depth >= MAX_DEPTH:
            raise _refusal(f"nested more than {MAX_DEPTH} levels deep", event.start_mark, "no recipe needs this")
        if self.nodes >= MAX_NODES:
            raise _refusal(f"more than {MAX_NODES} keys and values", event.start_mark, "no recipe needs this")
        self.nodes += 1
        self.depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Refusal(yaml.MarkedYAMLError):
    """YAML that is valid but not for a recipe; its note is the remedy."""


def _refusal(problem: str, mark: yaml.Mark, fix: str) -> _Refusal:
    return _Refusal(problem=problem, problem_mark=mark, note=fix)


def _parse(text: str, place: Callable[[int], _Place]) -> _Values | None:
    """Read one YAML document; None where there is none."""
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        values = _Values(None, {}, {})
        root = _convert(node, (), values, place)
        empty = root is None and values.written[()] == "" and isinstance(node, yaml.ScalarNode)
        return None if empty else values._replace(root=root)
    except yaml.MarkedYAMLError as error:
        line, what, fix = _explain(error)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        what, fix = f"the character U+{error.character:04X} is not allowed", "remove it"
    except (ValueError, OverflowError) as error:  # PyYAML lets those of int() and chr() through
        line, what, fix = loader.line + 1 if loader else 1, f"not valid YAML: {error}", "check numbers and \\ escapes"
    raise RecipeError(what, where=place(line).text, fix=fix)


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
    (r"expected <block end>", "this line does not fit those above", "let keys of one section begin in one column"),
    (r"expected the node content", "a value is missing before this", "check commas and brackets"),
    (r"but found another document", "a second document begins", "keep one recipe in one file"),
)


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


def _convert(node: yaml.Node, keys: Keys, values: _Values, place: Callable[[int], _Place]) -> Any:
    """The value of a node; places and spellings are noted in `values`, under `keys`."""
    values.places.setdefault(keys, place(node.start_mark.line + 1))
    if isinstance(node, yaml.MappingNode):
        return _convert_mapping(node, keys, values, place)
    if isinstance(node, yaml.SequenceNode):
        return [_convert(item, (*keys, i), values, place) for i, item in enumerate(node.value)]
    assert isinstance(node, yaml.ScalarNode)
    values.written[keys] = node.value
    return _scalar(node)


def _convert_mapping(
    node: yaml.MappingNode, keys: Keys, values: _Values, place: Callable[[int], _Place]
) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = _key(key_node)
        where = (*keys, key)
        if key in mapping:
            first = values.places[where].text
            raise _refusal(f"the key {key} is repeated, first at {first}", key_node.start_mark, "remove one of them")
        values.places[where] = place(key_node.start_mark.line + 1)
        mapping[key] = _convert(value_node, where, values, place)
    return mapping


def _key(node: yaml.Node) -> str:
    key = _scalar(node) if isinstance(node, yaml.ScalarNode) else None
    if not isinstance(key, str):
        raise _refusal("a key must be text", node.start_mark, "remove it, or put it in quotes")
    if key == "<<":
        raise _refusal("merge keys (<<) are not supported", node.start_mark, "write the keys out")
    return key


def _scalar(node: yaml.ScalarNode) -> Any:
    return _text(node) if node.style else _plain(node)


def _text(node: yaml.ScalarNode) -> str:
    """The text of a scalar; JSON's escapes for characters beyond U+FFFF come as two halves and are joined."""
    try:
        text = node.value.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise _refusal("half of a surrogate pair in an escape", node.start_mark, "remove it") from None
    if "\0" in text:
        raise _refusal("a NUL character in an escape", node.start_mark, "remove it")
    return str(text)


def _plain(node: yaml.ScalarNode) -> Any:
    text = node.value
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INTEGER.fullmatch(text):
        number = int(text) if len(text) < 21 else 2**64
        if not -(2**63) <= number < 2**63:
            raise _refusal("an integer beyond 64 bits", node.start_mark, "use a smaller one")
        return number
    if _NUMBER.fullmatch(text):
        return float(text)
    return _text(node)


# ---------------------------------------------------------------------------------------------- --set


def _override(values: _Values, override: str, order: int) -> None:
    """Set one value; a later one wins."""
    override = override.encode("utf-8", "backslashreplace").decode()  # bytes that are no text in this locale
    key, equals, text = override.partition("=")
    key = key.strip()
    keys: list[str | int] = list(key.split("."))
    if not equals or not all(keys):
        raise RecipeError("not of the form key=value", where=f"--set {override}", fix="e.g. --set noise.alpha=0.2")
    place = _Place(f"--set {key}", order)
    given = _parse(text, lambda _: place) or _Values(None, {}, {(): ""})
    parent = _open_parent(values, keys, place)
    where = tuple(keys)
    for table in (values.places, values.written):
        for old in [k for k in table if k[: len(where)] == where]:
            del table[old]
    parent[keys[-1]] = given.root
    values.places.update({(*where, *k): place for k in ((), *given.places)})
    values.written.update({(*where, *k): text for k, text in given.written.items()})


def _open_parent(values: _Values, keys: list[str | int], place: _Place) -> Any:
    """The mapping or list that holds the last key; sections on the way are created, list indices made integers."""
    node: Any = values.root
    for depth, key in enumerate(keys):
        here = _dotted(keys[:depth])
        if isinstance(node, list):
            if not str(key).isdecimal() or int(key) >= len(node):
                last = len(node) - 1
                raise RecipeError(
                    f"{here} is a list with indices 0 to {last}",
                    where=place.text,
                    fix="use one of these, or set the whole list",
                )
            keys[depth] = key = int(key)
        elif not isinstance(node, dict):
            raise RecipeError(
                f"{here} is {_shown(values, tuple(keys[:depth]))} and has no keys",
                where=place.text,
                fix=f"set {here} itself",
            )
        if depth == len(keys) - 1:
            break
        if isinstance(node, dict) and node.get(str(key)) is None:
            if str(keys[depth + 1]).isdecimal():
                raise RecipeError(
                    f"{_dotted(keys[: depth + 1])} is not in the recipe", where=place.text, fix="set the whole list"
                )
            node[str(key)] = {}
            values.places[tuple(keys[: depth + 1])] = place
        node = node[key]
    return node


# ---------------------------------------------------------------------------------------------- what is wrong


class _Problem(NamedTuple):
    place: _Place
    error: RecipeError


def _gather(problems: Iterable[_Problem]) -> InvalidRecipeError:
    """One error for all problems, in the order of the file."""
    first, *others = [problem.error for problem in sorted(problems, key=lambda problem: problem.place.order)]
    if len(others) >= MAX_PROBLEMS:
        rest = len(others) - MAX_PROBLEMS + 2
        others = [*others[: MAX_PROBLEMS - 2], RecipeError(f"and {rest} problems more")]
    error = InvalidRecipeError(first.what, where=first.where, fix=first.fix)
    error.others = others
    return error


def _problems(details: Iterable[ErrorDetails], values: _Values, path: Path) -> Iterator[_Problem]:
    """Turn pydantic's errors into ours, one for each key."""
    found: dict[Keys, tuple[ErrorDetails, dict[str, Any]]] = {}
    for detail in details:
        keys, node = _locate(detail["loc"])
        found.setdefault(keys, (detail, node))
    for keys, (detail, node) in found.items():
        # A choice between two types fails in both: at the list itself, and at the entry that is really wrong.
        if not any(len(other) > len(keys) and other[: len(keys)] == keys for other in found):
            yield _problem(detail, keys, node, values, path)


def _problem(detail: ErrorDetails, keys: Keys, node: dict[str, Any], values: _Values, path: Path) -> _Problem:
    place = _place_of(keys, values, path)
    match detail["type"]:
        case "value_error":
            message = detail["msg"].removeprefix("Value error, ")
            place = _place_named(message, keys, values) or place
            return _Problem(place, RecipeError(message, where=_where(place, keys)))
        case "missing":
            what, fix = "this key is required", f"add it{_under(keys[:-1])}, e.g. {_example(keys)}"
        case "extra_forbidden":
            what, fix = "unknown key", _known_keys(keys, values)
        case "union_tag_not_found":
            what, fix = "type is missing", f"add type: one of {_choices(node)}"
        case "union_tag_invalid":
            keys = (*keys, "type")
            place = _place_of(keys, values, path)
            what = f"must be one of {_choices(node)}, not {_shown(values, keys)}"
            fix = _did_you_mean(_get(values, keys), _tags(node))
        case _:
            what = f"must be {_expected(node)}, not {_shown(values, keys)}"
            fix = _remedy(node, keys, values)
    return _Problem(place, RecipeError(what, where=_where(place, keys), fix=fix))


def _where(place: _Place, keys: Keys) -> str:
    key = _dotted(keys)
    return place.text if not key or place.text == f"--set {key}" else f"{place.text}: {key}"


def _dotted(keys: Sequence[str | int]) -> str:
    return ".".join(str(key) if key != "" else "''" for key in keys)


def _place_of(keys: Keys, values: _Values, path: Path) -> _Place:
    """The place of a key, or of the section that lacks it."""
    for length in range(len(keys), 0, -1):
        if keys[:length] in values.places:
            return values.places[keys[:length]]
    return _Place(str(path), 0)


def _place_named(message: str, section: Keys, values: _Values) -> _Place | None:
    """The place of the first key that a message about several keys names, if the recipe has one of them."""
    for name in re.findall(r"[a-z_][a-z0-9_.]*[a-z0-9_]", message):
        keys = (*section, *name.split("."))
        # At the top level a lone word such as "model" is rather prose than a key.
        if keys in values.places and (section or "." in name):
            return values.places[keys]
    return None


def _under(section: Keys) -> str:
    return f" under {_dotted(section)}" if section else ""


def _example(keys: Keys) -> str:
    return _EXAMPLES.get(_dotted(keys)) or _EXAMPLES.get(str(keys[-1])) or f"{keys[-1]}: ..."


def _known_keys(keys: Keys, values: _Values) -> str:
    """The remedy for an unknown key: the one that was meant, where it belongs, or all that are allowed."""
    name, section = str(keys[-1]), keys[:-1]
    siblings = _get(values, section)
    node = _section_node(section, values)
    allowed = list(node.get("properties", ()))
    if "." in name:
        return f"write {name.replace('.', ': {')}: ...{'}' * name.count('.')}"
    if "type" in allowed:
        if values.places[(*section, "type")].text.startswith("--set"):
            return f"replace the whole section: --set '{_dotted(section)}={{type: {siblings['type']}}}'"
        return f"allowed for type {siblings['type']}: {', '.join(allowed)}"
    guess = _did_you_mean(name, [key for key in allowed if key not in siblings])
    homes = [home for home in _homes(name) if home != _dotted(section)]
    if homes and not guess:
        return f"it belongs under {' or '.join(homes)}"
    return guess or f"allowed here: {', '.join(allowed)}"


def _did_you_mean(name: object, known: Sequence[str]) -> str:
    if not isinstance(name, str):
        return ""
    close = difflib.get_close_matches(name.lower(), known, n=1)
    other = _OTHER_NAMES.get(name.lower())
    if other in known:
        return f"did you mean {other}?"
    return f"did you mean {close[0]}?" if close else ""


def _get(values: _Values, keys: Keys) -> Any:
    node = values.root
    for key in keys:
        node = node[key]
    return node


def _shown(values: _Values, keys: Keys) -> str:
    """A value for a message: as it was written, or what kind of collection it is."""
    value = _get(values, keys)
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:57] + "...")
    return values.written.get(keys) or "nothing"


def _remedy(node: dict[str, Any], keys: Keys, values: _Values) -> str:
    """What to write instead of a value of a wrong kind, where that can be told."""
    value, written = _get(values, keys), values.written.get(keys, "")
    kinds = {option.get("type") for option in _options(node)}
    if value is None and "object" in kinds:
        return "remove the key, or put its settings under it"
    if value is None:
        return "give a value, or remove the key for its default" if "default" in node else "give it a value"
    if isinstance(value, str) and value in _tags(node):
        return f"write {{type: {value}}}"
    if "object" in kinds and _dotted(keys) in _EXAMPLES:
        return f"e.g. {_example(keys)}"
    if isinstance(value, str):
        return _remedy_for_text(node, kinds, value)
    if isinstance(value, float) and value.is_integer() and "integer" in kinds and "number" not in kinds:
        return f"write {int(value)}"
    if "string" in kinds and isinstance(value, bool | int | float):
        return f"put it in quotes: '{written}'"
    if "array" in kinds and not isinstance(value, dict | list):
        return f"write [{written}]"
    return ""


def _remedy_for_text(node: dict[str, Any], kinds: set[Any], value: str) -> str:
    if "boolean" in kinds and value.lower() in _YES_NO:
        return f"write {_YES_NO[value.lower()]}"
    if kinds & {"integer", "number"}:
        digits = value.replace("_", "").replace(",", "").strip()
        if _is_number(digits):
            return f"write {digits} without quotes or separators"
        if "number" in kinds and _is_number(digits.removesuffix("%")):
            return f"write {float(digits.removesuffix('%')) / 100:g}"
    choices = [choice for option in _options(node) for choice in (*option.get("enum", ()), option.get("const"))]
    guess = _did_you_mean(value, [choice for choice in choices if isinstance(choice, str)])
    if not guess and "array" in kinds:
        return f"write [{value}]"
    return f"e.g. {_EXAMPLES['name']}" if "pattern" in node else guess


def _is_number(text: str) -> bool:
    return bool(_INTEGER.fullmatch(text) or _NUMBER.fullmatch(text))


# ---------------------------------------------------------------------------------------------- the schema


@lru_cache(maxsize=1)
def _schema() -> dict[str, Any]:
    return Recipe.model_json_schema()


def _resolve(node: Mapping[str, Any]) -> dict[str, Any]:
    """Follow a reference, and look through `... | None`."""
    if "$ref" in node:
        return _resolve({**_schema()["$defs"][node["$ref"].rpartition("/")[2]], **_without_ref(node)})
    options = [option for option in node.get("anyOf", ()) if option.get("type") != "null"]
    return _resolve(options[0]) if len(options) == 1 else dict(node)


def _without_ref(node: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key != "$ref"}


def _options(node: dict[str, Any]) -> list[dict[str, Any]]:
    """The alternatives of a node that is no tagged union."""
    if _tags(node):
        return [{"type": "object"}]
    return [_resolve(option) for option in node.get("anyOf", (node,))]


def _tags(node: dict[str, Any]) -> list[str]:
    return list(node.get("discriminator", {}).get("mapping", ()))


def _choices(node: dict[str, Any]) -> str:
    return ", ".join(_tags(node))


def _member(node: dict[str, Any], tag: Any) -> dict[str, Any]:
    return _resolve({"$ref": node["discriminator"]["mapping"][tag]})


def _locate(loc: Iterable[str | int]) -> tuple[Keys, dict[str, Any]]:
    """The keys in the recipe and the schema of pydantic's location, in which types stand between the keys."""
    node, keys = _resolve(_schema()), []
    for part in loc:
        if part in _tags(node):
            node = _member(node, part)
        elif "anyOf" not in node or isinstance(part, int):
            keys.append(part)
            node = _child(node, part)
    return tuple(keys), node


def _child(node: dict[str, Any], key: str | int) -> dict[str, Any]:
    """The schema of an entry of a section or list."""
    if isinstance(key, str):
        return _resolve(node.get("properties", {}).get(key, {}))
    return next((_resolve(option["items"]) for option in _options(node) if "items" in option), {})


def _section_node(keys: Keys, values: _Values) -> dict[str, Any]:
    """The schema of a section of this recipe: of the type that it has, where there are several."""
    node, value = _resolve(_schema()), values.root
    for key in keys:
        node, value = _child(node, key), value[key]
        if _tags(node):
            node = _member(node, value["type"])
    return node


def _homes(name: str) -> list[str]:
    """The sections that have a key of this name."""
    homes = []
    for section, entry in _schema()["properties"].items():
        node = _resolve(entry)
        members = [_member(node, tag) for tag in _tags(node)] or [node]
        if any(name in member.get("properties", {}) for member in members):
            homes.append(section)
    return homes


def _tagged_unions(node: Any) -> Iterator[dict[str, Any]]:
    """All tagged unions in a JSON Schema."""
    if isinstance(node, dict):
        if "discriminator" in node:
            yield node
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from _tagged_unions(child)


_BOUNDS = {"minimum": "of at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
_KINDS = {
    "integer": "an integer",
    "number": "a number",
    "string": "text",
    "boolean": "true or false",
    "object": "a section with keys of its own",
    "null": "null",
}
_MANY = {"integer": "integers", "number": "numbers", "string": "names"}


def _expected(node: dict[str, Any]) -> str:
    """What a key wants, in words."""
    if _tags(node):
        return f"a section with a type ({_choices(node)})"
    return " or ".join(_expected_option(option) for option in _options(node))


def _expected_option(node: dict[str, Any]) -> str:
    if "enum" in node:
        return f"one of {', '.join(map(str, node['enum']))}"
    if "const" in node:
        return str(node["const"])
    if node.get("type") == "array":
        return f"a list of {_MANY[_resolve(node['items'])['type']]}"
    if "pattern" in node:
        return f"text that matches {node['pattern']}"
    if node.get("minLength"):
        return "non-empty text"
    bounds = " and ".join(f"{words} {node[bound]:g}" for bound, words in _BOUNDS.items() if bound in node)
    return " ".join(f"{_KINDS[node['type']]} {bounds}".split())
