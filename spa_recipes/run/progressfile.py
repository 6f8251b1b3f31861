"""The progress that the processes of a stage write for its runner, each into a file of its own."""

import json
from pathlib import Path
from typing import Any, NamedTuple


class News(NamedTuple):
    """What the processes of an attempt wrote since the last look.

    Attributes:
        notices: each text once, however many processes say it.
        step: the newest line of the process that is furthest; None where there is no new one.
        any: whether anything was written.
    """

    notices: list[str]
    step: dict[str, Any] | None
    any: bool


class Progress:
    """The progress of all processes of an attempt."""

    def __init__(self, attempt: Path) -> None:
        self._attempt = attempt
        self._files: dict[Path, ProgressFile] = {}
        self._said = set[str]()

    def news(self) -> News:
        """What was written since the last call."""
        for path in progress_files(self._attempt):
            self._files.setdefault(path, ProgressFile(path))
        lines, steps = [], []
        for file in self._files.values():
            new = file.new_lines()
            lines += new
            steps += [line for line in new if "notice" not in line][-1:]
        notices = list(dict.fromkeys(line["notice"] for line in lines if "notice" in line))
        unsaid = [text for text in notices if text not in self._said or len(self._files) == 1]
        self._said |= set(unsaid)
        return News(unsaid, max(steps, key=_share, default=None), bool(lines))


def progress_files(attempt: Path) -> list[Path]:
    """The files with progress that are there, one per process."""
    return sorted(attempt.glob("progress*.jsonl"))


def _share(step: dict[str, Any]) -> float:
    done, total = float(step["done"]), float(step["total"])
    return done / max(1.0, total)


class ProgressFile:
    """Reads the lines that a process appends to its file."""

    def __init__(self, path: Path) -> None:
        self._path, self._position = path, 0

    def new_lines(self) -> list[dict[str, Any]]:
        """Complete lines since the last call."""
        try:
            with self._path.open("rb") as handle:
                handle.seek(self._position)
                content = handle.read()
        except OSError:
            return []
        complete = content[: content.rfind(b"\n") + 1]
        self._position += len(complete)
        return [line for text in complete.splitlines() if (line := _parsed(text)) is not None]


def _parsed(line: bytes) -> dict[str, Any] | None:
    """A line of progress; None for one that a full disk cut off."""
    try:
        value: dict[str, Any] = json.loads(line)
        return value
    except ValueError:
        return None
