"""`spa init`: writes a recipe; with a model and pairs it looks at both, and at this machine, first."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING

from spa_recipes.cli.recipes import write_new
from spa_recipes.cli.terminal import say
from spa_recipes.errors import DataError, RecipeError, setting
from spa_recipes.recipe.fitted import Machine, Seen, Unlabelled, fitted_recipe
from spa_recipes.units import for_shell

if TYPE_CHECKING:
    from spa_recipes.data.arrow import Rows
    from spa_recipes.data.rows import PromptRow
    from spa_recipes.recipe.schema import DatasetSource

MEASURED = 1000
"""Pairs whose lengths are measured."""


def write_starter(path: Path) -> None:
    """Write the commented starter.

    Raises:
        RecipeError: the file is there already.
    """
    from spa_recipes.recipe.starter import starter_recipe

    write_new(path, starter_recipe())
    say(
        f"wrote {path}; next: edit it, then `spa validate {for_shell(path)}` and `spa plan {for_shell(path)}`",
        "with --model and --pairs, its values would fit your model and your data",
    )


def write_fitted(path: Path, model: str, pairs: str, prompts: str | None = None) -> None:
    """Look at the model, the pairs, the prompts and the machine, and write a recipe that fits them.

    Raises:
        DataError: the model or the data cannot be used. RecipeError: the file is there already.
        TryAgainError: the network failed.
    """
    if path.exists():
        raise RecipeError("the file is there already", where=str(path), fix="choose another name")
    seen = look(path.stem, model, pairs, prompts)
    text = fitted_recipe(seen)
    write_new(path, text)
    say(f"{pairs}: {seen.rows:,} pairs, read as {seen.form}")
    if seen.unlabelled is not None:
        say(f"{prompts}: {seen.unlabelled.rows:,} prompts that no pair has")
    for name, found in (("prompts", seen.prompts), ("answers", seen.answers)):
        say(f"{name}: {found[len(found) // 2]} tokens in the middle, {found[-1]} at most")
    say(
        f"wrote {path}; next: `spa plan {for_shell(path)}`, then `spa run {for_shell(path)}`",
        "`spa schema > recipe.schema.json` beside it, and your editor completes and checks its keys",
    )


def look(name: str, model: str, pairs: str, unlabelled: str | None = None) -> Seen:
    """What a recipe for this model, these pairs and prompts without labels has to fit."""
    from spa_recipes.data.chat import Renderer, load_tokenizer
    from spa_recipes.data.model_files import ModelFiles
    from spa_recipes.data.rows import PairRow
    from spa_recipes.data.sources import read_pairs
    from spa_recipes.estimates import shape_of_config
    from spa_recipes.recipe.schema import DatasetSource
    from spa_recipes.recipe.shipped import find_template
    from spa_recipes.run.model_preflight import context_of

    with setting("--pairs"):
        loaded = read_pairs(DatasetSource(source=pairs, on_bad_row="skip"))
    with setting("--prompts"):
        fresh = (
            [] if unlabelled is None else _unlike(loaded.stored, DatasetSource(source=unlabelled, on_bad_row="skip"))
        )
    with setting("--model"):
        files = ModelFiles(model, None).at_commit()
        config = files.read("config.json", needed=True)
        template = files.chat_template()
        given = None if template else str(find_template("zephyr.jinja"))
        tokenizer = load_tokenizer(model, revision=files.revision, chat_template=given)
        renderer = Renderer(tokenizer, max_prompt_length=10**7, max_length=10**8, notice=lambda text: None)
        shape = shape_of_config(config)
        context = context_of(files)
    rows: list[PairRow] = list(loaded.stored.take(range(min(MEASURED, len(loaded.stored)))))  # type: ignore[arg-type]
    prompts, answers = [], []
    for row in rows:
        prompt, both = renderer.render_given(
            row["prompt"], [row[side][0]["content"] for side in ("chosen", "rejected")]
        )
        prompts.append(len(prompt.ids))
        answers += [len(answer.ids) for answer in both]
    prompts += [len(renderer.render_prompt(row["prompt"]).ids) for row in fresh[:MEASURED]]
    return Seen(
        name=re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "my-run",
        model=model,
        parameters=None if shape is None else shape.parameters,
        context=context,
        template=template,
        pairs=pairs,
        form=loaded.form,
        rows=len(loaded.stored),
        prompts=sorted(prompts),
        answers=sorted(answers),
        machine=_machine(),
        unlabelled=Unlabelled(unlabelled, len(fresh)) if unlabelled else None,
    )


def _unlike(pairs: Rows, source: DatasetSource) -> list[PromptRow]:
    """Prompts that no pair has, each once.

    Raises:
        DataError: there are none.
    """
    from spa_recipes.data.sources import read_prompts

    known = {*pairs.column("prompt_id").to_pylist()}
    found = {row["prompt_id"]: row for row in read_prompts(source).rows if row["prompt_id"] not in known}
    if not found:
        raise DataError("every prompt is that of a pair, too", where=str(source.source), fix="leave --prompts out")
    return [*found.values()]


def _machine() -> Machine:
    from spa_recipes.run.fit import hardware_here, host_bytes

    gpus = hardware_here()
    if gpus is None:
        return Machine(0, host_bytes())
    return Machine(gpus.gpus, gpus.memory, importlib.util.find_spec("vllm") is not None)
