"""A session: which pair a person sees next, on which side each answer stands, and what the choices say."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from spa_recipes.label.file import MADE_BY, Choice, LabelRow, LabelsFile, Status
from spa_recipes.label.pairs import Pair, Source


class Showing(NamedTuple):
    """A pair on the page.

    Attributes:
        pair: index of the pair.
        left: index of the answer that stands on the left.
        repeat: whether it is the second look, with the sides changed.
    """

    pair: int
    left: int
    repeat: bool


class StaleError(Exception):
    """Another window has answered this pair."""


def schedule(pairs: Sequence[Pair], seed: int, repeats: float) -> list[Showing]:
    """All showings in their order, which depends on nothing else.

    Of each group of `1 / repeats` pairs, one of the first half is shown again behind the group, with its sides changed:
    long enough after the first look that nobody remembers it.
    """
    size = round(1 / repeats) if repeats else len(pairs) + 1
    found = []
    for index, pair in enumerate(pairs):
        found.append(Showing(index, _draw(seed, "side", pair.id) % 2, repeat=False))
        if (index + 1) % size == 0:
            again = index + 1 - size + _draw(seed, "again", pair.id) % max(1, size // 2)
            found.append(Showing(again, 1 - _draw(seed, "side", pairs[again].id) % 2, repeat=True))
    return found


def _draw(seed: int, purpose: str, name: str) -> int:
    """A number that looks random and is the same in every call."""
    return int.from_bytes(hashlib.sha256(f"{seed} {purpose} {name}".encode()).digest()[:8])


class Progress(NamedTuple):
    """How far a session is: showings that are answered, and all."""

    done: int
    total: int


class Session:
    """One person's choices among the pairs of a source. Several threads may ask at the same time.

    What was chosen is in the labels file alone: a session that goes on begins where that ends.
    """

    def __init__(
        self,
        source: Source,
        file: LabelsFile,
        *,
        by: str = "",
        seed: int = 42,
        repeats: float = 0.1,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Begin, or go on.

        Args:
            by: the person's name.
            seed: of the sides, and of which pairs are shown again.
            repeats: share of the pairs that are shown again.
            check: raises a SpaError if the file was lost to another process.
        """
        self.source, self.file, self.by, self._check = source, file, by, check
        self.showings = schedule(source.pairs, seed, repeats)
        self._lock = threading.Lock()
        self._ended = False
        self._ids = {pair.id for pair in source.pairs}

    @property
    def rows(self) -> list[LabelRow]:
        """The person's rows about these pairs."""
        return [row for row in [*self.file.rows] if self._is_ours(row)]

    def current(self) -> int | None:
        """Number of the showing to answer next; None when all are."""
        with self._lock:
            return self._current()

    @property
    def progress(self) -> Progress:
        """Showings that are answered or passed over, of all."""
        with self._lock:
            left = sum(1 for _ in self._open())
        return Progress(len(self.showings) - left, len(self.showings))

    @property
    def without_label(self) -> int:
        """Pairs of the source, those that are not shown too, that nobody prefers an answer of."""
        source = self.source
        rows = [row for row in self.file.rows if row["origin"] == source.origin]
        return source.total + source.dropped - len({row["id"] for row in rows if row["status"] == "preferred"})

    @property
    def can_undo(self) -> bool:
        """Whether the last row of the file is one of these."""
        rows = self.file.rows
        return bool(rows) and self._is_ours(rows[-1])

    def choose(self, number: int, choice: Choice) -> None:
        """Write what the person says of a showing, down to the disk.

        Raises:
            StaleError: it is not the one to answer next.
            SpaError: the disk is full or broken, or another process has the file; nothing is written.
        """
        with self._lock:
            self._check()
            if self._ended or number != self._current():
                raise StaleError
            self.file.append(self._row(self.showings[number], choice))

    def undo(self) -> None:
        """Take back the last choice.

        Raises:
            StaleError: there is none.
            SpaError: the disk is broken, or another process has the file.
        """
        with self._lock:
            self._check()
            if self._ended or not self.can_undo:
                raise StaleError
            self.file.take_back()

    def end(self) -> None:
        """Write nothing any more: what is under way is finished first, and the file can be closed."""
        with self._lock:
            self._ended = True

    def _is_ours(self, row: LabelRow) -> bool:
        return row["by"] == self.by and row["id"] in self._ids

    def _current(self) -> int | None:
        return next(self._open(), None)

    def _open(self) -> Iterator[int]:
        """Numbers of the showings that are to be answered. A skipped pair is not shown again."""
        answered = {(row["id"], row["status"] == "repeated"): row["choice"] for row in self.rows}
        for number, showing in enumerate(self.showings):
            name = self.source.pairs[showing.pair].id
            passed = showing.repeat and answered.get((name, False)) == "skip"
            if (name, showing.repeat) not in answered and not passed:
                yield number

    def _row(self, showing: Showing, choice: Choice) -> LabelRow:
        pair = self.source.pairs[showing.pair]
        better = {"left": showing.left, "right": 1 - showing.left}.get(choice)
        first, second = pair.answers if better != 1 else pair.answers[::-1]
        decided: Status = "preferred" if better is not None else "tied" if choice == "tie" else "skipped"
        return {
            "id": pair.id,
            "prompt": pair.prompt,
            "chosen": [{"role": "assistant", "content": first}],
            "rejected": [{"role": "assistant", "content": second}],
            "status": "repeated" if showing.repeat else decided,
            "choice": choice,
            "left": showing.left,
            "better": better,
            "judge_better": pair.judged.better if pair.judged else None,
            "judge_p": pair.judged.p if pair.judged else None,
            "by": self.by,
            "origin": self.source.origin,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "made_by": MADE_BY,
        }
