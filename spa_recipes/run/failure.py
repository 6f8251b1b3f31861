"""How a failed stage is explained: by the error that it left behind, or by its exit code and the end of its log."""

import json
import re
import signal
from collections.abc import Sequence
from pathlib import Path

from spa_recipes.errors import EXIT_CODES, SpaError, StageError, TryAgainError
from spa_recipes.plan import Stage
from spa_recipes.run.disk import free_bytes, full_disk
from spa_recipes.run.memory import smaller
from spa_recipes.run.spec import json_settings

LOG_LINES_SHOWN, LOG_LINE_LENGTH = 8, 200
_TRACEBACK = "Traceback (most recent call last):"
_ERROR = re.compile(r"fatal\b|segmentation fault|killed\b|[\w.]*(error|exception)\b", re.IGNORECASE)
_RANK = re.compile(r"^\[rank\d+\]: ?")
"""What torch's launcher puts in front of a line."""
_BAR = re.compile(r"\d+%\||\d+(\.\d+)?(it|s|B|ex|examples|tokens|batch)/(s|it)\b")
"""A bar of progress, as transformers and datasets draw them."""
NO_ROOM_FOR_AN_ERROR = 64 * 1024
"""Free bytes below which a worker cannot be expected to have written down what happened."""


def stage_failure(stage: Stage, code: int, attempt: Path) -> SpaError:
    """The error that the stage left in `error.json`, or the end of its log where it left none."""
    log = attempt / "worker.log"
    try:
        record = json.loads((attempt / "error.json").read_text())
        kind = EXIT_CODES.get(record["exit_code"], StageError)
        where = (
            record["where"] if record["where"].startswith(stage.id) else f"{stage.id}: {record['where']}".rstrip(": ")
        )
        fix = record["fix"] or f"see {log}"
        return kind(record["what"], where=where, fix=fix)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return _crash(stage, code, log)


def _crash(stage: Stage, code: int, log: Path) -> SpaError:
    """What can be said of a process that left no error of its own."""
    if free_bytes(log) < NO_ROOM_FOR_AN_ERROR:
        return full_disk(None, log.parent, where=stage.id)
    lines = _lines(log)
    tail = " | ".join(_cut(line) for line in lines[-LOG_LINES_SHOWN:])
    end = f"last lines of its log: {tail}" if tail else "it left nothing in its log"
    if code == -signal.SIGKILL or "SIGKILL" in tail:  # of a launcher's child, only the log tells
        return TryAgainError(
            f"its process was killed (SIGKILL), as the kernel does when memory runs out; {end}",
            where=stage.id,
            fix=f"see {log}, and if it was the memory, {smaller(stage.kind, json_settings(stage))}",
        )
    how = f"was killed by signal {-code} ({_signal_name(-code)})" if code < 0 else f"ended with exit code {code}"
    cause = f": {_cut(cause)}" if (cause := first_error(lines)) else ""
    return StageError(f"its process {how}{cause}; {end}", where=stage.id, fix=f"see {log}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def _lines(log: Path) -> list[str]:
    """Lines of a log without the empty ones and without bars of progress; none where there is no log."""
    try:
        text = log.read_text("utf-8", errors="replace")
    except OSError:
        return []
    lines = (_RANK.sub("", line).rstrip() for line in re.split(r"[\r\n]+", text))
    return [line for line in lines if line and not _BAR.search(line)]


def first_error(lines: Sequence[str]) -> str:
    """The first real error of a log: what its first traceback ends with, else the first line that tells one."""
    if _TRACEBACK in lines:
        after = lines[lines.index(_TRACEBACK) + 1 :]
        return next((line for line in after if not line.startswith((" ", "\t"))), "")
    return next((line.strip() for line in lines if _ERROR.match(line.strip())), "")


def _cut(line: str) -> str:
    line = line.strip()
    return line if len(line) <= LOG_LINE_LENGTH else line[:LOG_LINE_LENGTH] + "..."
