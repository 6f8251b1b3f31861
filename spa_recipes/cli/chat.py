"""`spa chat`: its options, and what it does with them."""

from pathlib import Path
from typing import Annotated

import typer

from spa_recipes.cli.options import RunsDir


def chat(
    model: Annotated[
        str,
        typer.Argument(metavar="RUN | MODEL", help="Name of a finished run, folder, or Hub id.", show_default=False),
    ],
    against: Annotated[
        str | None, typer.Option(metavar="RUN | MODEL", help="A second policy, which answers beside it.")
    ] = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="System message.")] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="Sampling temperature; 0 is greedy.")] = 0.7,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer at most.")] = 512,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Talk to a policy, or to two of them side by side.

    /clear begins anew and /exit ends. Ctrl-C stops an answer, and a second one the command. Without a terminal, each
    line of standard input is the next thing that is said.
    """
    import sys

    from spa_recipes.api import find_model
    from spa_recipes.chat import Talker
    from spa_recipes.cli.conversation import converse, typed
    from spa_recipes.cli.terminal import bold, say, yellow

    found = [find_model(name, runs_dir) for name in (model, *([against] if against is not None else []))]
    talkers = [
        Talker(
            one.location,
            one.name,
            temperature=temperature,
            max_tokens=max_tokens,
            notice=lambda text: say(yellow(text), err=True),
        )
        for one in found
    ]
    names = [talker.name for talker in talkers]
    if sys.stdin.isatty():
        say(f"{bold(' and '.join(names))}; /clear begins anew, /exit ends, Ctrl-C stops an answer")
    converse(talkers, typed() if sys.stdin.isatty() else (line.rstrip("\r\n") for line in sys.stdin), system)
