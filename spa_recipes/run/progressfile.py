"""The progress that a stage writes for its runner, a line of JSON at a time."""

import json
from pathlib import Path
from typing import Any


class ProgressFile:
    """Reads the lines that a stage appends to `progress.jsonl`."""

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
