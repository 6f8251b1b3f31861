"""How a failed stage is explained: by the error that it left behind, or by its exit code and the end of its log."""

import json
import signal
from pathlib import Path

from spa_recipes.errors import EXIT_CODES, SpaError, StageError, TryAgainError
from spa_recipes.plan import Stage
from spa_recipes.run.disk import free_bytes, full_disk
from spa_recipes.run.memory import smaller
from spa_recipes.run.spec import json_settings

LOG_LINES_SHOWN, LOG_LINE_LENGTH = 8, 200
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
    except (OSError, ValueError, KeyError):
        return _crash(stage, code, log)


def _crash(stage: Stage, code: int, log: Path) -> SpaError:
    """What can be said of a process that left no error of its own."""
    if free_bytes(log) < NO_ROOM_FOR_AN_ERROR:
        return full_disk(None, log.parent, where=stage.id)
    tail = last_lines(log)
    end = f"last lines of its log: {tail}"
    if code == -signal.SIGKILL or "SIGKILL" in tail:  # of a launcher's child, only the log tells
        return TryAgainError(
            f"its process was killed (SIGKILL), as the kernel does when memory runs out; {end}",
            where=stage.id,
            fix=f"see {log}, and if it was the memory, {smaller(stage.kind, json_settings(stage))}",
        )
    how = f"was killed by signal {-code} ({_signal_name(-code)})" if code < 0 else f"ended with exit code {code}"
    return StageError(f"its process {how}; {end}", where=stage.id, fix=f"see {log}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def last_lines(log: Path) -> str:
    """The end of a log on one line."""
    try:
        lines = log.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return "(no log)"
    shown = [line.strip() for line in lines if line.strip()][-LOG_LINES_SHOWN:]
    return " | ".join(line if len(line) <= LOG_LINE_LENGTH else line[:LOG_LINE_LENGTH] + "..." for line in shown) or (
        "(empty)"
    )
