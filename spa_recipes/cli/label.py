"""`spa label`: its options, and what it does with them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spa_recipes.cli.options import RunsDir
from spa_recipes.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from spa_recipes.label.pairs import Source
    from spa_recipes.label.session import Session


LIMIT = 100
"""Pairs of a run that are shown unless the user says how many."""


def label(
    run: Annotated[
        str | None,
        typer.Argument(metavar="[RUN]", help="Name or folder of a run whose judge is looked at.", show_default=False),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Answers the prompts: folder, Hub id, or name of a finished run.")
    ] = None,
    prompts: Annotated[str | None, typer.Option(help="Prompts to answer: file, folder or Hub id.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="JSONL file for the labels; of a run: `labels-<iteration>.jsonl` in its folder.")
    ] = None,
    pick: Annotated[
        str | None, typer.Option(help="Pairs of RUN: doubted (smallest margins first; default) or random.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Pairs at most; default: 100 of RUN, all with --model.")
    ] = None,
    repeats: Annotated[
        float, typer.Option(min=0.0, max=0.5, help="Share of the pairs that come a second time, sides changed.")
    ] = 0.1,
    by: Annotated[
        str, typer.Option(metavar="NAME", help="Who labels; people may share a file one after another.")
    ] = "",
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port of the page; default: a free one.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of sampling, order and sides.")] = 42,
    runs_dir: RunsDir = Path("runs"),
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="With --model: any key of `spa sample`'s job."),
    ] = None,
) -> None:
    """Say which of two answers is better, on a page of this machine.

    With --model and --prompts it samples two answers to each prompt, and makes a first file of labels. With RUN it
    shows the pairs of the last iteration that its judge doubts most, and says afterwards how often you agree. Each
    choice is on the disk at once. Ctrl-C ends it, and the same command again goes on.
    """
    from spa_recipes.cli.terminal import say
    from spa_recipes.label_job import session_of
    from spa_recipes.units import for_shell

    if run is not None:
        if model is not None or prompts is not None or set_:
            raise RecipeError("RUN goes without --model, --prompts and --set", fix="its answers are there already")
        out, source = _of_run(run, runs_dir, out, pick or "doubted", seed)
    else:
        if pick is not None:
            raise RecipeError("needs a RUN, whose judge doubts", where="--pick", fix="leave it out, or name a RUN")
        out, source = _of_model(model, prompts, out, seed, set_ or [])

    def following(session: "Session") -> str:
        if run is not None:
            return f"`spa resume {for_shell(run)}` adds labels in the run's folder to the iterations to come"
        fresh = f" --prompts {for_shell(str(prompts))}" if session.without_label else ""
        return f"`spa init my.yaml --model {for_shell(str(model))} --pairs {for_shell(out)}{fresh}`"

    most = limit or (None if run is None else LIMIT)
    source = source._replace(pairs=source.pairs[:most])
    if source.dropped:
        say(f"{source.dropped:,} of the pairs are not shown: their two answers are equal, or one is empty")
    with session_of(source, out, by=by, seed=seed, repeats=repeats) as session:
        if session.file.cut_off:
            say(f"the last line of {out} was not written whole and is gone")
        _serve(session, port, following)


def _of_model(
    model: str | None, prompts: str | None, out: Path | None, seed: int, overrides: list[str]
) -> "tuple[Path, Source]":
    """Where the labels go, and pairs of answers that are sampled."""
    from spa_recipes.cli.progress import PlainReporter
    from spa_recipes.label_job import refuse_output, sampled_pairs
    from spa_recipes.sample_job import load_sample_job

    given = {"--model": model, "--prompts": prompts, "--out": out}
    if missing := [option for option, value in given.items() if value is None]:
        raise RecipeError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing",
            fix="give a RUN, or --model, --prompts and --out",
        )
    assert out is not None
    refuse_output(out)
    options = {
        "--model": ("model.model_name_or_path", model),
        "--prompts": ("prompts.source", prompts),
        "--seed": ("seed", seed),
    }
    job = load_sample_job(options, overrides)
    with PlainReporter() as reporter:
        return out, sampled_pairs(job, out, reporter)


def _of_run(run: str, runs_dir: Path, out: Path | None, pick: str, seed: int) -> "tuple[Path, Source]":
    """Where the labels go, and pairs that the run's judge has labelled."""
    from spa_recipes.api import find_run
    from spa_recipes.label_job import LastIteration, refuse_output

    if pick not in ("doubted", "random"):
        raise RecipeError(f"must be doubted or random, not {pick!r}", where="--pick")
    iteration = LastIteration(find_run(run, runs_dir))
    out = out or iteration.labels
    refuse_output(out)
    return out, iteration.pairs("random" if pick == "random" else "doubted", seed)


def _serve(session: "Session", port: int | None, following: "Callable[[Session], str]") -> None:
    """Show the page until the person ends the session, there or with Ctrl-C; then say what came of it."""
    import threading

    from spa_recipes.cli.terminal import bold, say
    from spa_recipes.label.server import LabelServer
    from spa_recipes.label.words import summary

    with LabelServer(session, lambda: summary(session), port) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            done, total = session.progress
            say(
                f"{total - done:,} of {total:,} to label: open {bold(server.address)}",
                "Ctrl-C ends; each choice is kept",
            )
            server.ended.wait()
        finally:
            server.shutdown()
            say(*summary(session), f"next:    {following(session)}")
