"""All that `spa` prints goes through here: lines, colours, tables and documents.

Values come from recipes, datasets, servers and file names. What a terminal would act on is shown instead, as `\\x1b`. A
stream that nobody reads, or that cannot show a character, never ends a command. This module imports no library, so that
the light commands answer at once.
"""

import errno
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from typing import Any, TextIO

from spa_recipes.errors import SpaError, TryAgainError

PLAIN_WIDTH = 110
"""Columns of a table where no terminal says how wide it is."""

_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ud800-\udfff]")
"""C0 and C1 with DEL, separators of lines, marks that turn the direction of text, and bytes that are no character."""

_PLAIN, _BOLD, _RED, _GREEN, _YELLOW, _CYAN = map(chr, range(0xFDD0, 0xFDD6))
"""Marks of a style inside a text. They are no characters, so `say` can tell them from the escape codes in a value."""

_CODES = {
    _PLAIN: "\x1b[0m",
    _BOLD: "\x1b[1m",
    _RED: "\x1b[31m",
    _GREEN: "\x1b[32m",
    _YELLOW: "\x1b[33m",
    _CYAN: "\x1b[36m",
}
_TO_CODES = str.maketrans(_CODES)
_TO_NOTHING = str.maketrans(dict.fromkeys(_CODES, ""))


def bold(text: str) -> str:
    """The text in bold."""
    return f"{_BOLD}{text}{_PLAIN}"


def red(text: str) -> str:
    """The text in red."""
    return f"{_RED}{text}{_PLAIN}"


def green(text: str) -> str:
    """The text in green."""
    return f"{_GREEN}{text}{_PLAIN}"


def yellow(text: str) -> str:
    """The text in yellow."""
    return f"{_YELLOW}{text}{_PLAIN}"


def cyan(text: str) -> str:
    """The text in cyan."""
    return f"{_CYAN}{text}{_PLAIN}"


def visible(text: str) -> str:
    """The text on one line, with control characters as their escape sequences in Python: `\\n`, `\\x1b`, `\\u202e`."""
    return _CONTROLS.sub(lambda control: control[0].encode("unicode_escape").decode(), text)


def coloured(text: str) -> str:
    """`visible`, with the styles of `bold` and the colours as codes for a terminal."""
    return visible(text).translate(_TO_CODES)


class Unread(io.TextIOBase):
    """Stands where standard output or standard error was, since nobody reads that; `error` is what told so."""

    encoding = "utf-8"

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        """Drop the text."""
        return len(text)


class Output:
    """Standard output or standard error as a file that can always be written.

    What its encoding cannot show is written as an escape sequence. Where writing fails, since the reader went away, the
    terminal was closed or the disk is full, the stream is `Unread` from then on.
    """

    def __init__(self, *, err: bool = False) -> None:
        self._name = "stderr" if err else "stdout"

    @property
    def _stream(self) -> TextIO:
        stream: TextIO = getattr(sys, self._name)
        return stream

    @property
    def encoding(self) -> str:
        """The stream's encoding."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Whether a person looks at it."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """The stream's descriptor."""
        return self._stream.fileno()

    def has_colours(self) -> bool:
        """Whether it is a terminal that shows colours, and NO_COLOR is not set."""
        return self.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"

    def write(self, text: str) -> int:
        """Write a text as it is."""
        try:
            return self._stream.write(text.encode(self.encoding, "backslashreplace").decode(self.encoding))
        except OSError as error:
            self._lose(error)
            return len(text)

    def flush(self) -> None:
        """Let the reader have what was written."""
        try:
            self._stream.flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        setattr(sys, self._name, Unread(error))


def lost_output() -> OSError | None:
    """Why nobody reads standard output; None while somebody may."""
    return sys.stdout.error if isinstance(sys.stdout, Unread) else None


def open_closed_streams() -> None:
    """Give a process that was started with closed streams streams to nowhere.

    Otherwise the next file that it opens would get the number of standard output.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            setattr(sys, name, Unread(OSError(errno.EBADF, os.strerror(errno.EBADF))))


def say(*lines: str, err: bool = False) -> None:
    """Print lines on standard output, or on standard error; an empty one if there are none.

    A newline in a line is a control character of a value. Colours reach terminals only, and respect NO_COLOR.
    """
    output = Output(err=err)
    codes = _TO_CODES if output.has_colours() else _TO_NOTHING
    before = lost_output()
    output.write("".join(visible(line).translate(codes) + "\n" for line in lines or ("",)))
    output.flush()
    error = lost_output()
    if before is None and error is not None and not isinstance(error, BrokenPipeError):
        say(f"standard output cannot be written ({error.strerror}): what follows is not shown", err=True)


def say_part(text: str) -> None:
    """Print a further part of a text at once. Its lines stay lines; other control characters are shown."""
    output = Output()
    output.write("\n".join(map(visible, text.replace("\t", "    ").split("\n"))))
    output.flush()


def say_json(value: Any, *, indent: int = 2) -> None:
    """Print JSON for scripts, in ASCII.

    Raises:
        TryAgainError: it could not be written whole.
    """
    say_document(json.dumps(value, indent=indent).replace("\x7f", "\\u007f") + "\n")


def say_document(text: str) -> None:
    """Print a text for programs as it is; it must be one that `is_shown_as_it_is`.

    Raises:
        TryAgainError: it could not be written whole, for another reason than that its reader has read enough.
    """
    output = Output()
    output.write(text)
    output.flush()
    error = lost_output()
    if error is not None and not isinstance(error, BrokenPipeError):
        raise TryAgainError(f"standard output cannot be written ({error.strerror})")


def is_shown_as_it_is(text: str) -> bool:
    """Whether the lines of a text have no control characters, and standard output can show all others."""
    try:
        text.encode(Output().encoding)
    except UnicodeEncodeError:
        return False
    return not any(_CONTROLS.search(line) for line in text.split("\n"))


def print_errors(error: SpaError) -> None:
    """Print one line per problem on standard error."""
    for problem in [error, *getattr(error, "others", [])]:
        say(f"{bold(red('error:'))} {problem}", err=True)


def table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Sequence[str] = (),
    wrap: bool = True,
    shorten: bool = False,
) -> list[str]:
    """Lines with columns under their headings, two spaces apart.

    Args:
        right: headings of the columns that stand to the right, as numbers do.
        wrap: whether the last column is broken into lines where the terminal ends.
        shorten: whether the last column is cut there.
    """
    import textwrap

    rows = [[visible(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in (headings, *rows)) for i in range(len(headings))]
    if wrap or shorten:
        before = sum(widths[:-1]) + 2 * (len(widths) - 1)
        widths[-1] = max(1, min(widths[-1], max(20, width() - before)))

    if shorten:
        rows = [[*row[:-1], cut(row[-1], widths[-1])] for row in rows]

    def lines(row: Sequence[str]) -> list[str]:
        folded = (textwrap.wrap(row[-1], widths[-1]) if wrap else [row[-1]]) or [""]
        texts = [[*(row[:-1] if i == 0 else [""] * (len(row) - 1)), part] for i, part in enumerate(folded)]
        return ["  ".join(map(aligned, headings, text, widths)).rstrip() for text in texts]

    def aligned(heading: str, text: str, width: int) -> str:
        return text.rjust(width) if heading in right else text.ljust(width)

    head, *_ = lines(headings)
    return [bold(head), *(line for row in rows for line in lines(row))]


def cut(text: str, most: int) -> str:
    """A text of at most so many characters, which ends with an ellipsis where it was longer."""
    return text if len(text) <= most else text[: most - 1] + "…"


def width() -> int:
    """Columns of the terminal, or those of a page where there is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else PLAIN_WIDTH
