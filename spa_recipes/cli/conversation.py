"""A conversation of a person with one policy or two: what is typed, what is printed, and Ctrl-C."""

from __future__ import annotations

import queue
import signal
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import zip_longest
from types import FrameType
from typing import TYPE_CHECKING, Protocol

from spa_recipes.cli.terminal import bold, lost_output, say, say_part, visible, width, yellow

if TYPE_CHECKING:
    from spa_recipes.chat import Reply
    from spa_recipes.data.rows import Message


class Answering(Protocol):
    """A policy as `converse` needs it (see `spa_recipes.chat.Talker`)."""

    name: str

    def answer(self, messages: list[Message], give: Callable[[str], None], stopped: Callable[[], bool]) -> Reply:
        """See `Talker`."""
        ...


def converse(talkers: Sequence[Answering], said: Iterator[str], system: str | None = None) -> None:
    """Answer what a person says until there is no more, or Ctrl-C comes where nobody answers.

    Raises:
        SpaError: a policy cannot answer.
    """
    histories: list[list[Message]] = [[] for _ in talkers]
    start: list[Message] = [{"role": "system", "content": system}] if system is not None else []
    with _interrupts() as interrupts:
        try:
            for text in said:
                if text.strip() == "/exit" or lost_output() is not None:
                    return
                if text.strip() == "/clear":
                    histories = [[] for _ in talkers]
                elif text.strip():
                    turn: Message = {"role": "user", "content": text}
                    replies = _answers(talkers, [[*start, *history, turn] for history in histories], interrupts)
                    for history, reply in zip(histories, replies, strict=True):
                        if reply.text.strip():
                            history += [turn, {"role": "assistant", "content": reply.text}]
                    if any(reply.cut for reply in replies):
                        say(yellow("the conversation is too long: its beginning was left out; /clear begins anew"))
        except KeyboardInterrupt:
            say()


def typed() -> Iterator[str]:
    """What a person types, line by line."""
    with suppress(ImportError):  # a Python without it reads plain lines
        import readline  # noqa: F401  # gives `input` its keys
    while True:
        try:
            yield input("> ")
        except EOFError:
            say()
            return


class _Interrupts:
    """Ctrl-C: the first one during an answer stops that, every other one the command."""

    def __init__(self) -> None:
        self.answering = False
        self.stopped = threading.Event()

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if self.answering and not self.stopped.is_set():
            self.stopped.set()
        else:
            raise KeyboardInterrupt


@contextmanager
def _interrupts() -> Iterator[_Interrupts]:
    handler = _Interrupts()
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield handler
    finally:
        handler.stopped.set()  # what still answers ends with the command
        signal.signal(signal.SIGINT, before)


def _answers(
    talkers: Sequence[Answering], conversations: Sequence[list[Message]], interrupts: _Interrupts
) -> list[Reply]:
    """The answers of all policies, printed while they come: of one as they are, of two side by side."""
    parts: queue.Queue[tuple[int, str | Reply | BaseException]] = queue.Queue()

    def answer(place: int) -> None:
        try:
            reply = talkers[place].answer(
                conversations[place], lambda text: parts.put((place, text)), interrupts.stopped.is_set
            )
        except BaseException as error:  # is raised again where it can be told
            parts.put((place, error))
        else:
            parts.put((place, reply))

    interrupts.stopped.clear()
    interrupts.answering = True
    for place in range(len(talkers)):
        threading.Thread(target=answer, args=(place,), daemon=True).start()
    shown = Columns([talker.name for talker in talkers]) if len(talkers) > 1 else None
    replies: dict[int, Reply] = {}
    while len(replies) < len(talkers):
        place, part = parts.get()
        if isinstance(part, BaseException):
            raise part
        if isinstance(part, str):
            say_part(part) if shown is None else shown.add(place, part)
        else:
            replies[place] = part
            if shown is not None:
                shown.end(place)
    interrupts.answering = False
    say(*([""] if shown is not None else ["", ""]))
    return [replies[place] for place in range(len(talkers))]


class Columns:
    """Texts that grow side by side: a row is printed when it can no longer change in any of them."""

    def __init__(self, names: Sequence[str]) -> None:
        self._texts = [""] * len(names)
        self._ended = [False] * len(names)
        self._printed = 0
        self._width = max(20, (width() - 3 * (len(names) - 1)) // len(names))
        self._print([bold(visible(name)[: self._width].ljust(self._width)) for name in names])

    def add(self, place: int, text: str) -> None:
        """A further part of a text."""
        self._texts[place] += text
        self._print_rows()

    def end(self, place: int) -> None:
        """A text is complete."""
        self._ended[place] = True
        self._print_rows()

    def _print_rows(self) -> None:
        lines = [self._lines(text) for text in self._texts]
        # The last line of a text that still grows may change.
        sure = min(
            (len(lines[i]) - 1 for i, ended in enumerate(self._ended) if not ended), default=max(map(len, lines))
        )
        rows = list(zip_longest(*(column[:sure] for column in lines), fillvalue=""))
        for row in rows[self._printed :]:
            self._print([cell.ljust(self._width) for cell in row])
        self._printed = max(self._printed, len(rows))

    def _lines(self, text: str) -> list[str]:
        """A text in lines of the column's width, with what a terminal would act on shown instead."""
        return [
            line
            for paragraph in text.replace("\t", "    ").split("\n")
            for line in textwrap.wrap(visible(paragraph), self._width, replace_whitespace=False) or [""]
        ]

    def _print(self, cells: Sequence[str]) -> None:
        say(" | ".join(cells).rstrip())
