"""Explains what is wrong with a recipe: one line for each problem, with the place, the key, the fact and the remedy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from spa_recipes.errors import RecipeError
from spa_recipes.recipe.rules import Conflict, conflicts_in
from spa_recipes.recipe.schema import Document
from spa_recipes.recipe.shape import Node, homes_of, locate, options_of, section_at, types_of
from spa_recipes.recipe.text import Keys, Place, Values, dotted, is_number, split_keys

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
    "after": "after: 1",
    "sft.data": "data: {type: dataset, source: conversations.jsonl}",
    "tau": "tau: 0.3",
    "num_processes": "num_processes: 4",
    "nodes": "nodes: 2",
    "gpus_per_node": "gpus_per_node: 8",
    "benchmark": "benchmark: {type: alpaca_eval}",
    "questions": "questions: question.jsonl",
    "tasks": "tasks: [ifeval, gsm8k]",
    "endpoint.base_url": "base_url: https://api.openai.com/v1",
    "endpoint.model": "model: gpt-4",
    "token_credit.type": "type: tgdpo",
    "type": "type: dataset",
    "seeds": "seeds: [1, 2, 3]",
    "variants": "variants: [{name: more-answers, set: {sampling.n: 4}}]",
    "control": "control: baseline",
    "of": "of: more-answers",
    "minus": "minus: baseline",
    "halving.seeds": "seeds: 2",
    "keep": "keep: 4",
}

# Names from other tools that are spelled too differently to be guessed.
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
_MANY = {"integer": "integers", "number": "numbers", "string": "names", "object": "sections"}


class InvalidRecipeError(RecipeError):
    """A recipe has wrong values. The message is about the first problem, `others` are about the remaining ones."""

    others: Sequence[RecipeError] = ()


def explain(error: ValidationError, values: Values, path: Path, document: type[Document]) -> InvalidRecipeError:
    """One error for all that is wrong, in the order of the file.

    Args:
        error: what validating `values` as a `document` raised.
        values: what the file says, with the place of every key.
        path: the file.
        document: the kind of document that `values` should be.
    """
    conflicts = [_of_conflict(conflict, values, path) for conflict in conflicts_in(error)]
    problems = conflicts or _of_shape(error, values, path, document)
    problems = sorted(problems, key=lambda problem: problem.place.order)
    first, *others = [problem.error() for problem in problems]
    if len(others) >= MAX_PROBLEMS:
        rest = len(others) - MAX_PROBLEMS + 2
        others = [*others[: MAX_PROBLEMS - 2], RecipeError(f"and {rest} more problems")]
    invalid = InvalidRecipeError(first.what, where=first.where, fix=first.fix)
    invalid.others = others
    return invalid


class _Problem(NamedTuple):
    """What is wrong at one key."""

    place: Place
    keys: Keys
    what: str
    fix: str

    def error(self) -> RecipeError:
        key = dotted(self.keys)
        where = self.place.text if not key or self.place.text == f"--set {key}" else f"{self.place.text}: {key}"
        return RecipeError(self.what, where=where, fix=self.fix)


def _of_conflict(conflict: Conflict, values: Values, path: Path) -> _Problem:
    """The problem at the first of the conflict's keys that the recipe sets."""
    candidates = [split_keys(key) for key in conflict.keys]
    keys = next((keys for keys in candidates if keys in values.places), candidates[0])
    return _Problem(_place(keys, values, path), keys, conflict.what, conflict.fix)


def _of_shape(error: ValidationError, values: Values, path: Path, document: type[Document]) -> Iterator[_Problem]:
    """One problem for each key that is unknown, is missing, or has a value of a wrong kind."""
    found: dict[Keys, tuple[ErrorDetails, Node]] = {}
    for detail in error.errors(include_url=False):
        keys, node = locate(document, detail["loc"])
        found.setdefault(keys, (detail, node))
    # A value that may be text or a list fails as both: at the key itself, and at the entry that is really wrong.
    inner = {keys[:length] for keys in found for length in range(len(keys))}
    for keys, (detail, node) in found.items():
        if keys not in inner:
            at = (*keys, "type") if detail["type"] == "union_tag_invalid" else keys
            what, fix = _what_and_fix(detail["type"], node, keys, values, document)
            yield _Problem(_place(at, values, path), at, what, fix)


def _what_and_fix(kind: str, node: Node, keys: Keys, values: Values, document: type[Document]) -> tuple[str, str]:
    """The fact and the remedy for one of pydantic's kinds of error."""
    match kind:
        case "missing":
            under = f" under {dotted(keys[:-1])}" if keys[:-1] else ""
            return "this key is required", f"add it{under}, e.g. {_example(keys)}"
        case "extra_forbidden":
            return "unknown key", _known_keys(keys, values, document)
        case "union_tag_invalid":
            return _choice_of_type(node, keys, values)
        case "too_short":
            return "must not be empty", "give it an entry, or remove the key for its default"
        case _:
            return f"must be {_expected(node)}, not {values.shown(keys)}", _remedy(node, keys, values)


def _choice_of_type(node: Node, keys: Keys, values: Values) -> tuple[str, str]:
    """The fact and the remedy for a section whose `type` is wrong or missing."""
    kinds, section = types_of(node), values.get(keys)
    named = ", ".join(kinds)
    if "type" not in section:
        return "this key is required", f"add it, one of {named}"
    what = f"must be one of {named}, not {values.shown((*keys, 'type'))}"
    return what, _did_you_mean(section["type"], [*kinds])


def _place(keys: Keys, values: Values, path: Path) -> Place:
    """The place of a key, or of the section that lacks it."""
    for length in range(len(keys), 0, -1):
        if keys[:length] in values.places:
            return values.places[keys[:length]]
    return Place(str(path), 0)


def _example(keys: Keys) -> str:
    named = tuple(key for key in keys if isinstance(key, str))  # without places in a list
    ends = (dotted(named[start:]) for start in range(len(named)))
    return next((EXAMPLES[end] for end in ends if end in EXAMPLES), f"{keys[-1]}: ...")


def _known_keys(keys: Keys, values: Values, document: type[Document]) -> str:
    """The remedy for an unknown key: the key that was meant, its section, or all keys that are allowed."""
    name, section = str(keys[-1]), keys[:-1]
    siblings = values.get(section)
    union, node = section_at(document, section, values)
    allowed = list(node.get("properties", ()))
    guess = _did_you_mean(name, [key for key in allowed if key not in siblings])
    if "." in name:
        return f"write {name.replace('.', ': {')}: ...{'}' * name.count('.')}"
    if "type" in allowed:
        if (*section, "type") not in values.places:
            others = [f"type: {kind}" for kind, member in types_of(union).items() if name in member["properties"]]
            guess = f"add {' or '.join(others)}" if others else guess
        elif values.places[(*section, "type")].text.startswith("--set"):
            return f"replace the whole section: --set '{dotted(section)}={{type: {siblings['type']}}}'"
        return guess or f"allowed for type {node['properties']['type']['const']}: {', '.join(allowed)}"
    for meant in (name, _OTHER_NAMES.get(name.lower(), name)):
        homes = [home for home in homes_of(document, meant) if home != dotted(section)]
        if homes and not guess:
            return f"{'it' if meant == name else meant} belongs under {' or '.join(homes)}"
    return guess or _set_already(name, siblings) or f"allowed here: {', '.join(allowed)}"


def _set_already(name: str, siblings: Iterable[Any]) -> str:
    """The key that was meant, where the recipe has it besides."""
    import difflib

    close = difflib.get_close_matches(name.lower(), [key for key in siblings if key != name], n=1, cutoff=0.8)
    return f"did you mean {close[0]}, which is set already?" if close else ""


def _did_you_mean(name: object, known: Sequence[str]) -> str:
    if not isinstance(name, str):
        return ""
    import difflib

    close = difflib.get_close_matches(name.lower(), known, n=1)
    other = _OTHER_NAMES.get(name.lower())
    if other in known:
        return f"did you mean {other}?"
    return f"did you mean {close[0]}?" if close else ""


def _remedy(node: Node, keys: Keys, values: Values) -> str:
    """What to write instead of a value of the wrong kind; empty where that is not clear."""
    value, written = values.get(keys), values.written.get(keys, "")
    kinds = {option.get("type") for option in options_of(node)}
    if value is None and "object" in kinds:
        return "remove the key, or put its settings under it"
    if value is None:
        return "give a value, or remove the key for its default" if "default" in node else "give it a value"
    if isinstance(value, str) and value in types_of(node):
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


def _remedy_for_text(node: Node, kinds: set[Any], value: str) -> str:
    if "boolean" in kinds and value.lower() in _YES_NO:
        return f"write {_YES_NO[value.lower()]}"
    if kinds & {"integer", "number"}:
        digits = value.replace("_", "").replace(",", "").strip()
        if is_number(digits):
            return f"write {digits} without quotes or separators"
        if "number" in kinds and is_number(digits.removesuffix("%")):
            return f"write {float(digits.removesuffix('%')) / 100:g}"
    choices = [choice for option in options_of(node) for choice in (*option.get("enum", ()), option.get("const"))]
    guess = _did_you_mean(value, [choice for choice in choices if isinstance(choice, str)])
    if not guess and "array" in kinds:
        return f"write [{value}]"
    return f"e.g. {EXAMPLES['name']}" if "pattern" in node else guess


def _expected(node: Node) -> str:
    """What a key accepts, in words."""
    if types_of(node):
        return f"a section with a type ({', '.join(types_of(node))})"
    return " or ".join(_expected_option(option) for option in options_of(node))


def _expected_option(node: Node) -> str:
    if "enum" in node:
        return f"one of {', '.join(map(str, node['enum']))}"
    if "const" in node:
        return str(node["const"])
    if node.get("type") == "array":
        items = node["items"]
        return f"a list of {'sections' if types_of(items) else _MANY[items['type']]}"
    if "pattern" in node:
        return f"text that matches {node['pattern']}"
    if node.get("minLength"):
        return "non-empty text"
    bounds = " and ".join(f"{words} {node[bound]:.10g}" for bound, words in _BOUNDS.items() if bound in node)
    return " ".join(f"{_KINDS[node['type']]} {bounds}".split())
