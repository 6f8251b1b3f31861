"""The labels file: a row for each choice that stands, on the disk before the next pair is shown.

`data.pairs.source` reads it as it is: the rows are pairs in TRL's explicit form, and `status` says which of them are
labels. `preferred` is one; `tied`, `skipped` and `repeated` rows are counted and not learned.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, TypedDict, cast, get_args

from spa_recipes.data.rows import Message
from spa_recipes.errors import RecipeError, system_error
from spa_recipes.state import atomic
from spa_recipes.state.reading import is_file

Choice = Literal["left", "right", "tie", "skip"]
"""What a person says of two answers that stand side by side."""
CHOICES: tuple[Choice, ...] = get_args(Choice)
Status = Literal["preferred", "tied", "skipped", "repeated"]


class LabelRow(TypedDict):
    """A row of the labels file.

    Attributes:
        id: name of the pair, by its content.
        chosen, rejected: of a tie or a skip, the two answers in the order in which they were sampled.
        status: `preferred`, `tied`, `skipped`, or `repeated` for the second look at a pair.
        choice: what the person said; `left` is the index of the answer that stood on the left.
        better: index of the better answer in the order of sampling; None for a tie and a skip.
        judge_better, judge_p: index of the answer that the judge prefers, and with which probability.
        by: name of the person.
        origin: where the pair comes from.
        made_by: `spa label`.
    """

    id: str
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    status: Status
    choice: Choice
    left: int
    better: int | None
    judge_better: int | None
    judge_p: float | None
    by: str
    origin: dict[str, Any]
    time: str
    made_by: str


MADE_BY = "spa label"


class LabelsFile:
    """A labels file that is open; whoever opens it holds a lock.

    Attributes:
        rows: those on the disk.
        cut_off: whether the last line was not written whole by a process that died; it is gone now.
    """

    def __init__(self, path: Path) -> None:
        """Open a labels file, or make one.

        Raises:
            RecipeError: something else is in its place.
            OSError: it cannot be read or written.
        """
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        try:
            if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
                raise RecipeError("neither a file nor a folder but a pipe or a device", where=str(path), fix=_OTHER)
            self.rows: list[LabelRow] = []
            self._ends = [0]
            self.cut_off = self._read()
            atomic.fsync_dir(path.parent)
        except BaseException:
            self.close()
            raise

    def append(self, row: LabelRow) -> None:
        """Write a row, down to the disk.

        Raises:
            SpaError: the disk is full or broken; the file is as it was.
        """
        line = json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        try:
            self._write(line, self._ends[-1])
        except OSError as error:
            with suppress(OSError):
                self._end_at(self._ends[-1])
            raise system_error(error, place=str(self.path)) from error
        self._ends.append(self._ends[-1] + len(line))
        self.rows.append(row)

    def take_back(self) -> LabelRow:
        """Remove the last row; IndexError if there is none."""
        try:
            self._end_at(self._ends[-2])
        except OSError as error:
            raise system_error(error, place=str(self.path)) from error
        self._ends.pop()
        return self.rows.pop()

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _read(self) -> bool:
        """Read the rows; returns whether a cut off last line was removed."""
        with os.fdopen(os.dup(self._descriptor), "rb") as handle:
            lines = handle.readlines()
        for number, line in enumerate(lines, start=1):
            row, start = _row_of(line), self._ends[-1]
            whole = line.endswith(b"\n")
            if row is None and not whole and (line.startswith(_BEGIN) or _BEGIN.startswith(line)):
                self._end_at(start)
                return True
            if row is None:
                raise RecipeError("not a row of `spa label`", where=f"{self.path}:{number}", fix=_OTHER)
            if not whole:  # an editor left the end of the line out
                self._write(b"\n", start + len(line))
            self._ends.append(start + len(line) + (not whole))
            self.rows.append(row)
        return False

    def _write(self, content: bytes, start: int) -> None:
        written = 0
        while written < len(content):
            written += os.pwrite(self._descriptor, content[written:], start + written)
        atomic.fsync(self._descriptor)

    def _end_at(self, size: int) -> None:
        os.ftruncate(self._descriptor, size)
        atomic.fsync(self._descriptor)


_BEGIN = b'{"id": "'
"""How each row begins."""
_OTHER = "choose another --out; this one stays as it is"


def _row_of(line: bytes) -> LabelRow | None:
    """The row that a line holds; None where it holds something else."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(value, dict) and value.get("made_by") == MADE_BY and value.keys() >= LabelRow.__required_keys__
    return cast(LabelRow, value) if whole else None


def rows_in(path: Path) -> list[LabelRow]:
    """The rows of a labels file that nobody has to hold; none where there is no such file."""
    if not is_file(path):
        return []
    return [row for line in path.read_bytes().splitlines() if (row := _row_of(line)) is not None]


@contextmanager
def opened(path: Path) -> Iterator[LabelsFile]:
    """A labels file, which is made where none is there.

    Raises:
        RecipeError: something else is there, or no such folder.
        SpaError: it cannot be read or written.
    """
    try:
        file = LabelsFile(path)
    except OSError as error:
        raise system_error(error, place=str(path), fix="choose another --out") from error
    try:
        yield file
    finally:
        file.close()
