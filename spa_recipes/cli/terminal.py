"""Lines, colours and tables on the terminal. It imports no library, so that the light commands answer at once."""

import os
import re
import shutil
import sys
from collections.abc import Sequence
from typing import TextIO

from spa_recipes.errors import SpaError

PLAIN_WIDTH = 110
"""Columns of a table where no terminal says how wide it is."""

_CODE = re.compile(r"\x1b\[\d+m")


def bold(text: str) -> str:
    """The text in bold."""
    return f"\x1b[1m{text}\x1b[0m"


def red(text: str) -> str:
    """The text in red."""
    return f"\x1b[31m{text}\x1b[0m"


def green(text: str) -> str:
    """The text in green."""
    return f"\x1b[32m{text}\x1b[0m"


def yellow(text: str) -> str:
    """The text in yellow."""
    return f"\x1b[33m{text}\x1b[0m"


def cyan(text: str) -> str:
    """The text in cyan."""
    return f"\x1b[36m{text}\x1b[0m"


def say(text: str = "", *, err: bool = False) -> None:
    """Print a line on standard output, or on standard error; colours reach terminals only, and respect NO_COLOR."""
    stream = sys.stderr if err else sys.stdout
    print(text if _has_colours(stream) else _CODE.sub("", text), file=stream, flush=True)


def print_errors(error: SpaError) -> None:
    """Print one line per problem on standard error."""
    for problem in [error, *getattr(error, "others", [])]:
        say(f"{bold(red('error:'))} {problem}", err=True)


def table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = (), wrap: bool = True
) -> str:
    """Columns under their headings, two spaces apart.

    Args:
        right: headings of the columns that stand to the right, as numbers do.
        wrap: whether the last column is broken into lines where the terminal ends.
    """
    import textwrap

    widths = [max(len(row[i]) for row in (headings, *rows)) for i in range(len(headings))]
    if wrap:
        before = sum(widths[:-1]) + 2 * (len(widths) - 1)
        widths[-1] = max(1, min(widths[-1], max(20, _width() - before)))

    def lines(row: Sequence[str]) -> list[str]:
        folded = (textwrap.wrap(row[-1], widths[-1]) if wrap else [row[-1]]) or [""]
        texts = [[*(row[:-1] if i == 0 else [""] * (len(row) - 1)), part] for i, part in enumerate(folded)]
        return ["  ".join(map(aligned, headings, text, widths)).rstrip() for text in texts]

    def aligned(heading: str, text: str, width: int) -> str:
        return text.rjust(width) if heading in right else text.ljust(width)

    head, *_ = lines(headings)
    return "\n".join([bold(head), *(line for row in rows for line in lines(row))])


def _width() -> int:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else PLAIN_WIDTH


def _has_colours(stream: TextIO) -> bool:
    return stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
