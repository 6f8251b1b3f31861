"""`spa data`: what is seen in a dataset, how three rows are rendered, what is counted, and the lines for a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from spa_recipes.cli.terminal import bold, say
from spa_recipes.data import counts, sources
from spa_recipes.data.sources import Loaded
from spa_recipes.errors import DataError, RecipeError
from spa_recipes.recipe.schema import DatasetSource, Model

_SHOWN = 3
_MEASURED = 1000


class _Way(NamedTuple):
    """A use of a dataset, what reads it for that, and the section of a recipe that takes it."""

    use: sources.Use
    section: str


_WAYS = {
    "pairs": _Way(sources.PAIRS, "data: {pairs: %s}"),
    "conversations": _Way(sources.CONVERSATIONS, "sft: {data: %s}"),
    "prompts": _Way(sources.PROMPTS, "data: {prompts: %s}"),
}


def show(source: str, settings: Sequence[str], use: str | None, model: str | None) -> None:
    """Print what a dataset holds.

    Raises:
        DataError: it cannot be read. RecipeError: an option is wrong.
    """
    given = _source(source, settings)
    name, loaded = _read(given, use)
    total = len(loaded.stored) + len(loaded.skipped)
    say(f"{bold(source)}: {total:,} rows, {len(loaded.stored):,} {name}")
    say(f"form:     {loaded.form}")
    say(f"columns:  {', '.join(loaded.columns)}")
    say(f"ignored:  {', '.join(loaded.ignored) or 'none'}")
    for remark in loaded.remarks:
        say(f"          {remark}")
    rows = list(loaded.stored.take(range(min(_MEASURED, len(loaded.stored)))))
    _print_rows(rows, model)
    lines = counts.table(loaded.skipped)
    if name == "pairs":
        lines += counts.repeats(loaded.stored).lines
    for line in lines or ["no row is skipped, repeated or contradicted"]:
        say(line)
    say("")
    say(bold("for a recipe:"))
    say(_WAYS[name].section % _written(given))


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
    for entry in entries:
        key, equals, value = entry.partition("=")
        if not equals:
            fix = f"e.g. {option} columns.prompt=question"
            raise RecipeError(f"{entry!r} is no KEY=VALUE", where=option, fix=fix)
        if key == "columns.ignore":
            given["columns"]["ignore"] = [name.strip() for name in value.strip("[]").split(",")]
        elif key.startswith("columns."):
            given["columns"][key.removeprefix("columns.")] = _value(value) if key == "columns.positive" else value
        else:
            given[key] = _value(value) if key == "max_skipped" else value
    return given


def _value(text: str) -> bool | float | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return float(text)
    except ValueError:
        return text


def _read(given: DatasetSource, use: str | None) -> tuple[str, Loaded[Any]]:
    """The dataset for the use that is asked for, or for the first one that its form is good for."""
    readers: dict[str, Callable[[DatasetSource], Loaded[Any]]] = {
        "pairs": sources.read_pairs,
        "conversations": sources.read_conversations,
        "prompts": sources.read_prompts,
    }
    if use is not None:
        if use not in readers:
            raise RecipeError(f"{use!r} is no use of data", where="--as", fix=f"choose one of {', '.join(readers)}")
        return use, readers[use](given)
    for name, (wanted, _) in _WAYS.items():
        try:
            sources.look(given, wanted)
        except DataError as error:
            if "columns of no known form" not in error.what or name == "prompts":
                raise
        else:
            return name, readers[name](given)
    raise AssertionError("the last way raises")


def _print_rows(rows: Sequence[Mapping[str, Any]], model: str | None) -> None:
    renderer = None
    if model is not None:
        from spa_recipes.data.chat import Renderer, load_tokenizer

        settings = Model(model_name_or_path=model)
        tokenizer = load_tokenizer(model)
        renderer = Renderer(tokenizer, max_prompt_length=settings.max_prompt_length, max_length=settings.max_length)
    for row in rows[:_SHOWN]:
        number = row["row"]
        say("")
        say(bold(f"row {number}"))
        for part, messages in _parts(row):
            for message in messages:
                calls = f" calls {message['tool_calls']}" if "tool_calls" in message else ""
                say(f"  {part} {message['role']}: {_short(message['content'] + calls)}")
        if renderer is not None:
            say(f"  rendered: {_short(repr(_rendered(renderer, row)), 600)}")
    unit, lengths = _lengths(rows, renderer)
    say("")
    for part, found in lengths.items():
        found = sorted(found)
        say(f"{part}: {found[len(found) // 2]:,} {unit} in the middle, {found[-1]:,} at most (of {len(found):,} rows)")


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
    return ("characters" if renderer is None else "tokens"), found


def _short(text: str, most: int = 200) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[:most]}..."


def _written(given: DatasetSource) -> str:
    """The source as a recipe has it, on one line."""
    import json

    values = given.model_dump(exclude_defaults=True)
    values.pop("type", None)
    return json.dumps({"source": str(Path(given.source)) if given.source.startswith(".") else given.source} | values)
