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


ERROR, LOG = "error.json", "worker.log"
"""Files of an attempt: why its first process failed, and what it and its launcher printed. Each further process has
such files of its own (see `Context.own_file`)."""
_CONSEQUENCE = re.compile(
    r"connection (reset|closed|refused|aborted)|broken pipe|socket (closed|timeout)|recvValue|DistNetworkError"
    r"|nccl\w*Error|NCCL error|gloo/transport|collective operation timeout|ChildFailedError|SignalException"
    r"|Application timeout caused pair closure|failed \(exitcode: -?\d+\) local_rank",
    re.IGNORECASE,
)
"""What the processes that are left, and their launchers, say when one that they train with is gone."""
_NO_PLACE = re.compile(r"(srun|slurmstepd|ray): error: (?!.*: tasks? [\d,-]+: (Exited|Terminated|Killed))")
"""What a launcher on a cluster says that could not start a process, or lost its machine; not that a process ended."""
_LOST_CODES = frozenset({-signal.SIGKILL, 128 + signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM})
"""How a process ends that something outside of it ended: by signal, or as a launcher reports that."""


def is_consequence(text: str) -> bool:
    """Whether an error only says that another process is gone."""
    return _CONSEQUENCE.search(text) is not None


class LostError(TryAgainError):
    """A process of a stage is gone and left no reason of its own: it was killed, or its machine is lost."""


def stage_failure(stage: Stage, code: int, attempt: Path) -> SpaError:
    """The first error that a process of the stage left, or the end of a log where none did.

    An error that only says that another process is gone counts where there is no other.
    """
    errors = [error for path in error_files(attempt) if (error := _left_error(stage, path)) is not None]
    real = next((error for error in errors if not is_consequence(error.what)), None)
    return real or _crash(stage, code, attempt)


def error_files(attempt: Path) -> list[Path]:
    """What the processes of an attempt left as reasons, oldest first by the clock of the drive."""
    return sorted(attempt.glob("error*.json"), key=lambda path: path.stat().st_mtime_ns)


def _left_error(stage: Stage, path: Path) -> SpaError | None:
    """The error that one process left; None if it cannot be read."""
    log = path.with_name(path.name.replace("error", "worker", 1)).with_suffix(".log")
    try:
        record = json.loads(path.read_text())
        kind = EXIT_CODES.get(record["exit_code"], StageError)
        where = (
            record["where"] if record["where"].startswith(stage.id) else f"{stage.id}: {record['where']}".rstrip(": ")
        )
        fix = record["fix"] or f"see {log}"
        return kind(record["what"], where=where, fix=fix)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _crash(stage: Stage, code: int, attempt: Path) -> SpaError:
    """What can be said of a process that left no error of its own."""
    log = _telling_log(attempt)
    if free_bytes(log) < NO_ROOM_FOR_AN_ERROR:
        return full_disk(None, log.parent, where=stage.id)
    lines = _lines(log)
    tail = " | ".join(_cut(line) for line in lines[-LOG_LINES_SHOWN:])
    end = f"last lines of its log: {tail}" if tail else "it left nothing in its log"
    if code in (-signal.SIGKILL, 128 + signal.SIGKILL) or "SIGKILL" in tail:  # of a launcher's child, the log tells
        return LostError(
            f"its process was killed (SIGKILL), as the kernel does when memory runs out; {end}",
            where=stage.id,
            fix=f"see {log}, and if it was the memory, {smaller(stage.kind, json_settings(stage))}",
        )
    cause = first_error(lines)
    everything = (line for path in _logs(attempt) for line in _lines(path))
    if not cause and (refused := next((line for line in everything if _NO_PLACE.match(line)), "")):
        return LostError(
            f"its machines did not start it, or were lost: {_cut(refused)}",
            where=stage.id,
            fix=f"see {log}; the same command goes on when they can",
        )
    if code in _LOST_CODES or code == 0 or is_consequence(cause):
        return LostError(
            f"a process of it is gone and left no reason (exit code {code}{f', {_cut(cause)}' if cause else ''})",
            where=stage.id,
            fix=f"see {attempt} and what became of its machine; the same command goes on",
        )
    how = f"was killed by signal {-code} ({_signal_name(-code)})" if code < 0 else f"ended with exit code {code}"
    return StageError(
        f"its process {how}{f': {_cut(cause)}' if cause else ''}; {end}", where=stage.id, fix=f"see {log}"
    )


def _logs(attempt: Path) -> list[Path]:
    """What the processes of an attempt and their launchers printed; the first one's comes first."""
    return [attempt / LOG, *sorted(attempt.glob("worker-*.log"))]


def _telling_log(attempt: Path) -> Path:
    """The log of the process that failed by itself, where one can be told, else the first one's."""
    logs = _logs(attempt)
    causes = {log: first_error(_lines(log)) for log in logs}
    return next((log for log, cause in causes.items() if cause and not is_consequence(cause)), logs[0])


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
    """The first real error of a log: what its first traceback ends with, else the first line that tells one.

    What only says that another process is gone, as a launcher does at the end, counts where there is nothing else.
    """
    ends = [_end_of_traceback(lines[i + 1 :]) for i, line in enumerate(lines) if line == _TRACEBACK]
    told = [line.strip() for line in lines if _ERROR.match(line.strip())]
    found = [line for line in (*ends, *told) if line]
    return next((line for line in found if not is_consequence(line)), found[0] if found else "")


def _end_of_traceback(after: Sequence[str]) -> str:
    return next((line for line in after if not line.startswith((" ", "\t"))), "")


def _cut(line: str) -> str:
    line = line.strip()
    return line if len(line) <= LOG_LINE_LENGTH else line[:LOG_LINE_LENGTH] + "..."
