"""What was made stays in files, each found again by what made it."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DIGITS = 16
"""Of a value's file name."""

NAMED = 16
"""Letters of each thing that made a value, in a line of progress."""


class NotMadeError(Exception):
    """It is not there, and was only looked for."""


@dataclass(frozen=True)
class Kept:
    """A folder of JSON files.

    Attributes:
        machine: is written beside each value.
        only_look: raise `NotMadeError` instead of making a value.
    """

    folder: Path
    machine: str = ""
    only_look: bool = False

    def get(self, kind: str, made_by: dict[str, Any], make: Callable[[], Any]) -> Any:
        """A value of JSON: from its file, or made and kept there."""
        file = self.folder / kind / f"{digest(made_by)}.json"
        if not file.exists():
            if self.only_look:
                raise NotMadeError(kind)
            begin, cpu = time.monotonic(), time.process_time()
            value = make()
            seconds = {"seconds": time.monotonic() - begin, "cpu_seconds": time.process_time() - cpu}
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(".part")
            part.write_text(json.dumps({"made_by": made_by, "machine": self.machine, **seconds, "value": value}))
            part.replace(file)
            by = ", ".join(value[:NAMED] for value in made_by.values() if isinstance(value, str))
            print(f"  {kind}: {by}; {seconds['cpu_seconds']:.0f} s of CPU", flush=True)
        return json.loads(file.read_text())["value"]

    def machines(self) -> list[str]:
        """Where and when all that is there was made."""
        files = self.folder.glob(f"*/{'[0-9a-f]' * DIGITS}.json")
        return sorted({json.loads(file.read_text())["machine"] for file in files})


def digest(value: object) -> str:
    """A short name for a value of JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:DIGITS]
