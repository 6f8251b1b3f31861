"""`spa export`: its options, and what it says."""

from pathlib import Path
from typing import Annotated

import typer

from spa_recipes.cli.options import RunsDir


def export(
    model: Annotated[
        str,
        typer.Argument(metavar="RUN | MODEL", help="Name of a finished run, folder, or Hub id.", show_default=False),
    ],
    format_: Annotated[str, typer.Option("--format", help="gguf, for llama.cpp, Ollama and LM Studio.")] = "gguf",
    out: Annotated[
        Path | None, typer.Option(help="The file to write; default: NAME.gguf here.", show_default=False)
    ] = None,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Write a model as one file for llama.cpp and Ollama.

    The file holds tokenizer and chat template, too. Architectures of Llama, Mistral, Qwen2 and Qwen3; the weights keep
    their precision.
    """
    from spa_recipes.api import find_model
    from spa_recipes.cli.terminal import say, yellow
    from spa_recipes.errors import RecipeError
    from spa_recipes.export.gguf import export_gguf
    from spa_recipes.units import for_shell, human_bytes

    if format_ != "gguf":
        raise RecipeError(f"must be gguf, not {format_!r}", where="--format")
    found = find_model(model, runs_dir)
    done = export_gguf(found.location, found.name, out or Path(f"{found.name}.gguf"))
    for text in done.notices:
        say(yellow(text))
    say(f"{done.tensors} tensors, {human_bytes(done.bytes)}, context {done.context} tokens -> {done.path}")
    line = f"FROM ./{done.path.name}"
    say(f"next:    `echo {for_shell(line)} > Modelfile`, `ollama create {found.name} -f Modelfile`, or llama.cpp")
