"""`spa sample`: its options, and what it does with them."""

from pathlib import Path
from typing import Annotated

import typer


def sample(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Folder, Hub id, or name of a finished run.", show_default=False)
    ],
    prompts: Annotated[str, typer.Option(help="Prompts to answer: file, folder or Hub id.", show_default=False)],
    out: Annotated[Path, typer.Option(help="JSONL file for the answers.", show_default=False)],
    n: Annotated[int | None, typer.Option("--n", help="Answers per prompt; default: 2.", show_default=False)] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output file.")] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set any key of the job, e.g. `--set sampling.temperature=1`."),
    ] = None,
) -> None:
    """Sample answers of a model to your prompts, as a run does.

    The output has a row for each distinct prompt: `prompt` and `responses`. The same command again continues a call
    that was stopped.
    """
    from spa_recipes.cli.progress import PlainReporter
    from spa_recipes.cli.summary import print_sampled
    from spa_recipes.sample_job import load_sample_job, sample_prompts

    options = {
        "MODEL": ("model.model_name_or_path", model),
        "--prompts": ("prompts.source", prompts),
        "--n": ("sampling.n", n),
    }
    job = load_sample_job(options, set_ or [])
    with PlainReporter() as reporter:
        manifest = sample_prompts(job, out, reporter, overwrite=overwrite)
    print_sampled(out, job, manifest)
