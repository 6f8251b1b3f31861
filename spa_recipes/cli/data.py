"""`spa data`: what is seen in a dataset, how three rows are rendered, what is counted, and the lines for a recipe."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ValidationError

from spa_recipes.cli.terminal import bold, say
from spa_recipes.data import counts, sources
from spa_recipes.data.model_files import ModelFiles
from spa_recipes.data.readable import Readable
from spa_recipes.data.sources import Loaded
from spa_recipes.errors import DataError, RecipeError
from spa_recipes.recipe.schema import DatasetSource
from spa_recipes.units import count_of

if TYPE_CHECKING:
    from spa_recipes.data.chat import Renderer

_SHOWN = 3
_MEASURED = 1000
_SAID = ("role", "content")
_NO_LIMIT = 1 << 40  # tokens


class _Way(NamedTuple):
    """A use of a dataset, what reads it for that, and the section of a recipe that takes it."""

    use: sources.Use
    section: str


_WAYS = {
    "pairs": _Way(sources.PAIRS, "data: {pairs: %s}"),
    "conversations": _Way(sources.CONVERSATIONS, "sft: {data: %s}"),
    "prompts": _Way(sources.PROMPTS, "data: {prompts: %s}"),
}


def show(
    source: str,
    settings: Sequence[str],
    use: str | None,
    model: str | None,
    chat_template: str | None = None,
    variables: Sequence[str] = (),
) -> None:
    """Print what a dataset holds.

    Args:
        model: whose tokenizer and chat template render the rows; None shows their texts.
        chat_template, variables: `model.chat_template` and `model.chat_template_kwargs` of the recipe.

    Raises:
        DataError: it cannot be read. RecipeError: an option is wrong.
    """
    given = _source(source, settings)
    for option, value in (("--chat-template", chat_template), ("--chat-template-kwargs", variables)):
        if value and model is None:
            raise RecipeError("has no effect without a model", where=option, fix="name one with --model")
    kwargs = variables_of(variables, "--chat-template-kwargs")
    renderer = None if model is None else _renderer(model, chat_template, kwargs)
    check = None if renderer is None or model is None else Readable(ModelFiles(model, None), lambda: renderer)
    name, loaded = _read(given, use, check)
    total = len(loaded.stored) + len(loaded.skipped)
    say(f"{bold(source)}: {count_of(total, 'row')}, {count_of(len(loaded.stored), name.removesuffix('s'))}")
    say(f"form:     {loaded.form}")
    say(f"columns:  {', '.join(loaded.columns)}")
    say(f"ignored:  {', '.join(loaded.ignored) or 'none'}")
    for remark in loaded.remarks:
        say(f"          {remark}")
    rows = list(loaded.stored.take(range(min(_MEASURED, len(loaded.stored)))))
    _print_rows(rows, renderer)
    lines = counts.table(loaded.skipped)
    if name == "pairs":
        lines += counts.repeats(loaded.stored).lines
    for line in lines or ["no row is skipped, repeated or contradicted"]:
        say(line)
    say("")
    say(bold("for a recipe:"))
    say(_WAYS[name].section % _written(given))
    if chat_template is not None or kwargs:
        template: dict[str, Any] = {"chat_template": chat_template, "chat_template_kwargs": kwargs}
        given_ones = {key: value for key, value in template.items() if value}
        say(f"model: {json.dumps({'model_name_or_path': model} | given_ones)}")


def _source(source: str, settings: Sequence[str]) -> DatasetSource:
    """The source with its settings, which are written as `split=test` or `columns.prompt=question`."""
    given = {"source": source, **settings_of(settings, "--set")}
    try:
        return DatasetSource.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        raise RecipeError(first["msg"], where=f"--set {'.'.join(str(part) for part in first['loc'])}") from None


def settings_of(entries: Sequence[str], option: str) -> dict[str, Any]:
    """Settings of a dataset as they are given on the command line.

    Raises:
        RecipeError: an entry has no equals sign.
    """
    given: dict[str, Any] = {"columns": {}}
    for key, value in _entries(entries, option, "columns.prompt=question"):
        if key == "columns.ignore":
            given["columns"]["ignore"] = [name.strip() for name in value.strip("[]").split(",")]
        elif key.startswith("columns."):
            given["columns"][key.removeprefix("columns.")] = _value(value) if key == "columns.positive" else value
        else:
            given[key] = _value(value) if key == "max_skipped" else value
    return given


def variables_of(entries: Sequence[str], option: str) -> dict[str, Any]:
    """Variables of a chat template as they are given on the command line.

    Raises:
        RecipeError: an entry has no equals sign.
    """
    found = _entries(entries, option, "enable_thinking=false")
    return {key: int(value) if value.isdecimal() else _value(value) for key, value in found}


def _entries(entries: Sequence[str], option: str, example: str) -> Iterator[tuple[str, str]]:
    for entry in entries:
        key, equals, value = entry.partition("=")
        if not equals:
            raise RecipeError(f"{entry!r} is no KEY=VALUE", where=option, fix=f"e.g. {option} {example}")
        yield key, value


def _value(text: str) -> bool | float | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return float(text)
    except ValueError:
        return text


def _renderer(model: str, chat_template: str | None, variables: Mapping[str, Any]) -> Renderer:
    """What renders rows whole: the lengths that are printed say what `max_length` would cut."""
    from spa_recipes.data.chat import Renderer, load_tokenizer

    return Renderer(
        load_tokenizer(model, chat_template=chat_template),
        max_prompt_length=_NO_LIMIT,
        max_length=2 * _NO_LIMIT,
        template_kwargs=variables,
        notice=say,
    )


def _read(given: DatasetSource, use: str | None, check: Readable | None) -> tuple[str, Loaded[Any]]:
    """The dataset for the use that is asked for, or for the first one that its form is good for."""
    readers: dict[str, Callable[..., Loaded[Any]]] = {
        "pairs": sources.read_pairs,
        "conversations": sources.read_conversations,
        "prompts": sources.read_prompts,
    }
    if use is not None:
        if use not in readers:
            raise RecipeError(f"{use!r} is no use of data", where="--as", fix=f"choose one of {', '.join(readers)}")
        return use, readers[use](given, check=check)
    for name, (wanted, _) in _WAYS.items():
        try:
            sources.look(given, wanted)
        except DataError as error:
            if "columns of no known form" not in error.what or name == "prompts":
                raise
        else:
            return name, readers[name](given, check=check)
    raise AssertionError("the last way raises")


def _print_rows(rows: Sequence[Mapping[str, Any]], renderer: Renderer | None) -> None:
    for row in rows[:_SHOWN]:
        number = row["row"]
        say("")
        say(bold(f"row {number}"))
        for part, messages in _parts(row):
            for message in messages:
                beside = "".join(f" [{key}: {value}]" for key, value in message.items() if key not in _SAID)
                say(f"  {part} {message['role']}: {_short(message['content'] + beside)}")
        if renderer is not None:
            say(f"  rendered: {_short(repr(_rendered(renderer, row)), 600)}")
    if renderer is not None:
        renderer.removed_ends = 0  # the rows above come again
    unit, lengths = _lengths(rows, renderer)
    say("")
    for part, found in lengths.items():
        found = sorted(found)
        median = count_of(found[len(found) // 2], unit)
        say(f"{part}: {median} in the middle, {found[-1]:,} at most (of {count_of(len(found), 'row')})")
    if renderer is not None and renderer.removed_ends:
        number = count_of(renderer.removed_ends, "answer ends", "answers end")
        say(f"{number} with an end of turn of their own, which is removed")


def _parts(row: Mapping[str, Any]) -> list[tuple[str, list[Any]]]:
    return [(name, row[name]) for name in ("messages", "prompt", "chosen", "rejected") if name in row]


def _rendered(renderer: Any, row: Mapping[str, Any]) -> str:
    """The text of the tokens of a row: its conversation, or its prompt with the chosen response."""
    if "messages" in row:
        ids = renderer.conversation(row["messages"]).input_ids
    else:
        ids = renderer.prompt_ids(row["prompt"])
        ids = ids + (renderer.response_ids(row["prompt"], row["chosen"][0]["content"]) if "chosen" in row else [])
    text: str = renderer.tokenizer.decode(ids)
    return text


def _lengths(rows: Sequence[Mapping[str, Any]], renderer: Any) -> tuple[str, dict[str, list[int]]]:
    """Lengths of the parts of rows, in tokens where there is a model, else in characters."""
    found: dict[str, list[int]] = {}
    for row in rows:
        for part, messages in _parts(row):
            if renderer is None:
                length = sum(len(message["content"]) for message in messages)
            elif part == "messages":
                length = len(renderer.conversation(messages).input_ids)
            elif part == "prompt":
                length = len(renderer.prompt_ids(messages))
            else:
                length = len(renderer.response_ids(row["prompt"], messages[0]["content"]))
            found.setdefault(part, []).append(length)
    return ("character" if renderer is None else "token"), found


def _short(text: str, most: int = 200) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[:most]}..."


def _written(given: DatasetSource) -> str:
    """The source as a recipe has it, on one line."""
    values = given.model_dump(exclude_defaults=True)
    values.pop("type", None)
    name = given.name
    return json.dumps({"source": str(Path(name)) if name.startswith(".") else name} | values)
