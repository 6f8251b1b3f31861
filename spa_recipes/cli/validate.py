"""What `spa validate` prints: a line for each recipe, or one for each thing that is wrong with it or its local data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from spa_recipes.cli.terminal import bold, print_errors, say, yellow
from spa_recipes.data.places import is_local
from spa_recipes.errors import DataError, RecipeError, SpaError, setting
from spa_recipes.recipe.load import load_recipe
from spa_recipes.recipe.schema import DatasetSource, Recipe


def validate_recipes(paths: Sequence[Path], overrides: Sequence[str], *, show_example: bool = False) -> int:
    """Check recipes and the local data and model that they name; returns the exit code."""
    code = 0
    for path in paths:
        try:
            recipe = load_recipe(path, overrides).recipe
        except RecipeError as error:
            print_errors(error)
            code = RecipeError.exit_code
            continue
        if faults := list(_faults(recipe)):
            for fault in faults:
                print_errors(fault)
            code = code or faults[0].exit_code
            continue
        say(f"{path}: ok ({recipe.name}, {recipe.iterations} iterations)")
        if (
            recipe.tracking.report_to
            or recipe.model.lora is not None
            or recipe.compute.executor.type == "accelerate"
            or any(benchmark.type == "lm_eval" for benchmark in recipe.evaluation.benchmarks)
        ):
            from spa_recipes.run.packages import missing_packages

            for missing in missing_packages(recipe):
                say(yellow(f"  needed where it runs: {missing}"))
        if show_example:
            try:
                _print_example(recipe)
            except SpaError as error:
                print_errors(error)
                code = code or error.exit_code
    return code


def _faults(recipe: Recipe) -> Iterator[SpaError]:
    """What is wrong with local data, rows that are asked for, and the lengths of a local model."""
    yield from _faults_of_model(recipe)
    named = {
        "data.pairs.source": recipe.data.pairs,
        "data.prompts.source": recipe.data.prompts,
        "sft.data.source": recipe.sft.data if recipe.sft is not None else None,
        **{f"data.added.{i}.source": labels for i, labels in enumerate(recipe.data.added)},
    }
    local = {key: source for key, source in named.items() if isinstance(source, DatasetSource) and is_local(source)}
    rows: dict[str, int | None] = {}
    if local:
        from spa_recipes.data import (  # takes a while, which a recipe without local data need not wait for
            check,
            sources,
        )

        uses = {"data.prompts.source": sources.PROMPTS, "sft.data.source": sources.CONVERSATIONS}
        for key, source in local.items():
            with setting(key):
                rows[key], found = check.faults_of(source, uses.get(key, sources.PAIRS))
            for fault in found:
                yield type(fault)(fault.what, where=f"{key}: {fault.where}", fix=fault.fix)
    yield from _faults_of_counts(recipe, rows)


def _faults_of_counts(recipe: Recipe, read: dict[str, int | None]) -> Iterator[SpaError]:
    """Rows that are asked for and not there, where they were read or can be counted."""
    from spa_recipes.data.asked import check_enough
    from spa_recipes.data.places import count_rows

    counted: list[int | None] = []
    for key, source in (("data.pairs.source", recipe.data.pairs), ("data.prompts.source", recipe.data.prompts)):
        if key in read:
            counted.append(read[key])
        else:
            counted.append(None if source is None else count_rows(source))
    pairs, prompts = counted
    if pairs is None or (recipe.data.prompts is not None and prompts is None):
        return
    try:
        check_enough(recipe.data, pairs, prompts)
    except DataError as error:
        yield error


def _faults_of_model(recipe: Recipe) -> Iterator[SpaError]:
    """Lengths for which a model on this disk has no positions."""
    folder = Path(recipe.model.model_name_or_path).expanduser()
    if recipe.model.is_sandbox or not folder.is_dir():
        return
    from spa_recipes.data.model_files import ModelFiles
    from spa_recipes.run.model_preflight import check_lengths

    try:
        with setting("model.model_name_or_path"):
            files = ModelFiles(str(folder), None)
            check_lengths(files, files.read("config.json"), recipe)
    except SpaError as error:
        yield error


def _print_example(recipe: Recipe) -> None:
    """Print the first pair as the model gets it: its text, its token ids, and where the response starts.

    Raises:
        SpaError: the data or the model's tokenizer cannot be read.
    """
    from spa_recipes.data.chat import Renderer, load_tokenizer
    from spa_recipes.data.sources import read_pairs
    from spa_recipes.recipe.shipped import find_template

    model = recipe.model
    if model.is_sandbox:
        raise RecipeError(
            "the sandbox's tokenizer is made by the run", where="--show-example", fix="name another model"
        )
    template = model.chat_template and str(find_template(model.chat_template))
    tokenizer = load_tokenizer(
        model.model_name_or_path,
        revision=model.revision,
        trust_remote_code=model.trust_remote_code,
        chat_template=template,
    )
    renderer = Renderer(
        tokenizer,
        max_prompt_length=model.max_prompt_length,
        max_length=model.max_length,
        template_kwargs=model.chat_template_kwargs,
    )
    (row,) = read_pairs(recipe.data.pairs).stored.take([0])
    for side in ("chosen", "rejected"):
        prompt, (answer,) = renderer.render_given(row["prompt"], [row[side][0]["content"]])
        start, cut = len(prompt.ids), " (cut to fit)" if prompt.cut or answer.cut else ""
        say("", bold(f"row {row['row']}, {side}: {start} + {len(answer.ids)} tokens{cut}"))
        for part, ids in (("prompt", prompt.ids), ("response", answer.ids)):
            say(f"  {part}: {tokenizer.decode(ids)!r}")
        say(f"  ids: {[*prompt.ids, *answer.ids]}", f"  the response starts at token {start} (counted from 0)")
