"""What is wrong with a recipe: pydantic's errors as one line each, with the place, the key, the fact and the remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from spa_recipes.errors import RecipeError
from spa_recipes.recipe.schema import Recipe, Section
from spa_recipes.recipe.text import Keys, Place, Values, dotted, is_number

MAX_PROBLEMS = 20

# A required key is best explained by an example. A test keeps the table complete.
EXAMPLES = {
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
    "evaluation.benchmarks.questions": "questions: question.jsonl",
    "evaluation.benchmarks.endpoint.base_url": "base_url: https://api.openai.com/v1",
    "evaluation.benchmarks.endpoint.model": "model: gpt-4",
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

_YES_NO = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}
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


class InvalidRecipeError(RecipeError):
    """A recipe breaks rules: the message is about the first problem, `others` are about the other ones."""

    others: Sequence[RecipeError] = ()


def explain(error: ValidationError, values: Values, path: Path, form: type[Section] = Recipe) -> InvalidRecipeError:
    """One error for all that pydantic found, one problem for each key, in the order of the file; `form` was wanted."""
    root = _schema(form)
    found: dict[Keys, tuple[ErrorDetails, dict[str, Any]]] = {}
    for detail in error.errors(include_url=False):
        keys, node = _locate(detail["loc"], root)
        found.setdefault(keys, (detail, node))
    # A choice between two types fails in both: at the list itself, and at the entry that is really wrong.
    inner = {keys[:length] for keys in found for length in range(len(keys))}
    problems = [_problem(*entry, keys, values, path, root) for keys, entry in found.items() if keys not in inner]
    first, *others = [problem for _, problem in sorted(problems, key=lambda problem: problem[0].order)]
    if len(others) >= MAX_PROBLEMS:
        rest = len(others) - MAX_PROBLEMS + 2
        others = [*others[: MAX_PROBLEMS - 2], RecipeError(f"and {rest} problems more")]
    invalid = InvalidRecipeError(first.what, where=first.where, fix=first.fix)
    invalid.others = others
    return invalid


def _problem(
    detail: ErrorDetails, node: dict[str, Any], keys: Keys, values: Values, path: Path, root: dict[str, Any]
) -> tuple[Place, RecipeError]:
    match detail["type"]:
        case "value_error":
            what, fix = detail["msg"].removeprefix("Value error, "), ""
        case "missing":
            under = f" under {dotted(keys[:-1])}" if keys[:-1] else ""
            what, fix = "this key is required", f"add it{under}, e.g. {_example(keys)}"
        case "extra_forbidden":
            what, fix = "unknown key", _known_keys(keys, values, root)
        case "union_tag_invalid":
            given = "type" in values.get(keys)
            keys = (*keys, "type")
            kinds = ", ".join(_types(node))
            what = f"must be one of {kinds}, not {values.shown(keys)}" if given else "this key is required"
            fix = _did_you_mean(values.get(keys), [*_types(node)]) if given else f"add it, one of {kinds}"
        case "too_short":
            what, fix = "must not be empty", "give it an entry, or remove the key for its default"
        case _:
            what, fix = f"must be {_expected(node)}, not {values.shown(keys)}", _remedy(node, keys, values)
    place = _place(keys, values, path)
    if detail["type"] == "value_error":
        place = _place_named(what, keys, values) or place
    key = dotted(keys)
    where = place.text if not key or place.text == f"--set {key}" else f"{place.text}: {key}"
    return place, RecipeError(what, where=where, fix=fix)


def _place(keys: Keys, values: Values, path: Path) -> Place:
    """The place of a key, or of the section that lacks it."""
    for length in range(len(keys), 0, -1):
        if keys[:length] in values.places:
            return values.places[keys[:length]]
    return Place(str(path), 0)


def _place_named(message: str, section: Keys, values: Values) -> Place | None:
    """The place of the first key that a message about several keys names, if the recipe has one of them."""
    for name in re.findall(r"[a-z_][a-z0-9_.]*[a-z0-9_]", message):
        keys = (*section, *name.split("."))
        # At the top level a lone word such as "model" is rather prose than a key.
        if keys in values.places and (section or "." in name):
            return values.places[keys]
    return None


def _example(keys: Keys) -> str:
    named = tuple(key for key in keys if isinstance(key, str))  # without places in a list
    return EXAMPLES.get(dotted(named)) or EXAMPLES.get(str(keys[-1])) or f"{keys[-1]}: ..."


def _known_keys(keys: Keys, values: Values, root: dict[str, Any]) -> str:
    """The remedy for an unknown key: the one that was meant, where it belongs, or all that are allowed."""
    name, section = str(keys[-1]), keys[:-1]
    siblings = values.get(section)
    union, node = _section(section, values, root)
    allowed = list(node.get("properties", ()))
    guess = _did_you_mean(name, [key for key in allowed if key not in siblings])
    if "." in name:
        return f"write {name.replace('.', ': {')}: ...{'}' * name.count('.')}"
    if "type" in allowed:
        if (*section, "type") not in values.places:
            others = [f"type: {kind}" for kind, member in _types(union).items() if name in member["properties"]]
            guess = f"add {' or '.join(others)}" if others else guess
        elif values.places[(*section, "type")].text.startswith("--set"):
            return f"replace the whole section: --set '{dotted(section)}={{type: {siblings['type']}}}'"
        return guess or f"allowed for type {node['properties']['type']['const']}: {', '.join(allowed)}"
    homes = [home for home in _homes(name, root) if home != dotted(section)]
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


def _remedy(node: dict[str, Any], keys: Keys, values: Values) -> str:
    """What to write instead of a value of a wrong kind, where that can be told."""
    value, written = values.get(keys), values.written.get(keys, "")
    kinds = {option.get("type") for option in _options(node)}
    if value is None and "object" in kinds:
        return "remove the key, or put its settings under it"
    if value is None:
        return "give a value, or remove the key for its default" if "default" in node else "give it a value"
    if isinstance(value, str) and value in _types(node):
        return f"write {{type: {value}}}"
    if "object" in kinds and dotted(keys) in EXAMPLES:
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
        if is_number(digits):
            return f"write {digits} without quotes or separators"
        if "number" in kinds and is_number(digits.removesuffix("%")):
            return f"write {float(digits.removesuffix('%')) / 100:g}"
    choices = [choice for option in _options(node) for choice in (*option.get("enum", ()), option.get("const"))]
    guess = _did_you_mean(value, [choice for choice in choices if isinstance(choice, str)])
    if not guess and "array" in kinds:
        return f"write [{value}]"
    return f"e.g. {EXAMPLES['name']}" if "pattern" in node else guess


def _expected(node: dict[str, Any]) -> str:
    """What a key wants, in words."""
    if _types(node):
        return f"a section with a type ({', '.join(_types(node))})"
    return " or ".join(_expected_option(option) for option in _options(node))


def _expected_option(node: dict[str, Any]) -> str:
    if "enum" in node:
        return f"one of {', '.join(map(str, node['enum']))}"
    if "const" in node:
        return str(node["const"])
    if node.get("type") == "array":
        items = _resolve(node["items"])
        return f"a list of {'sections' if _types(items) else _MANY[items['type']]}"
    if "pattern" in node:
        return f"text that matches {node['pattern']}"
    if node.get("minLength"):
        return "non-empty text"
    bounds = " and ".join(f"{words} {node[bound]:.10g}" for bound, words in _BOUNDS.items() if bound in node)
    return " ".join(f"{_KINDS[node['type']]} {bounds}".split())


# ---------------------------------------------------------------------------------------------- the schema


@lru_cache
def _schema(form: type[Section]) -> dict[str, Any]:
    """The JSON Schema of a section, with every definition put where it is used."""
    schema = form.model_json_schema()
    definitions = schema.pop("$defs")

    def inlined(node: Any) -> Any:
        if isinstance(node, list):
            return [inlined(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            node = {**definitions[node["$ref"].rpartition("/")[2]], **node}
            del node["$ref"]
        return {key: inlined(value) for key, value in node.items()}

    whole: dict[str, Any] = inlined(schema)
    return whole


def _resolve(node: Mapping[str, Any]) -> dict[str, Any]:
    """Look through `... | None`."""
    options = [option for option in node.get("anyOf", ()) if option.get("type") != "null"]
    return _resolve(options[0]) if len(options) == 1 else dict(node)


def _options(node: dict[str, Any]) -> list[dict[str, Any]]:
    """The alternatives of a node that is no choice by `type`."""
    if _types(node):
        return [{"type": "object"}]
    return [_resolve(option) for option in node.get("anyOf", (node,))]


def _types(node: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The sections that `type` chooses from, by type; none where a node is something else."""
    members = {member["properties"]["type"]["const"]: member for member in map(_resolve, node.get("oneOf", ()))}
    return dict(sorted(members.items()))


def _locate(loc: Iterable[str | int], root: dict[str, Any]) -> tuple[Keys, dict[str, Any]]:
    """The keys in the recipe and the schema of pydantic's location, in which types stand between the keys."""
    node, keys = root, []
    for part in loc:
        if types := _types(node):
            node = types[str(part)]
        elif "anyOf" not in node or isinstance(part, int):
            keys.append(part)
            node = _child(node, part)
    return tuple(keys), node


def _child(node: dict[str, Any], key: str | int) -> dict[str, Any]:
    """The schema of an entry of a section or list."""
    if isinstance(key, str):
        return _resolve(node.get("properties", {}).get(key, {}))
    return next((_resolve(option["items"]) for option in _options(node) if "items" in option), {})


def _section(keys: Keys, values: Values, root: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The schema of a section, and that of the type which it has in this recipe, where there are several."""
    node = union = root
    for length, key in enumerate(keys, start=1):
        node = union = _child(node, key)
        if types := _types(union):
            optional = (kind for kind, member in types.items() if "type" not in member.get("required", ()))
            default = next(optional, "")
            node = types[values.get(keys[:length]).get("type", default)]
    return union, node


def _homes(name: str, root: dict[str, Any]) -> list[str]:
    """The sections that have a key of this name."""
    homes = []
    for section, entry in root["properties"].items():
        node = _resolve(entry)
        if any(name in member.get("properties", {}) for member in (*_types(node).values(), node)):
            homes.append(section)
    return homes
