"""What a stage's processes used: the most memory, and how fast the work went. Written beside their logs."""

import contextlib
import resource
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from spa_recipes.stages.context import Context
from spa_recipes.state import atomic
from spa_recipes.state.digests import files_below
from spa_recipes.state.reading import read_json

_PATTERN = "usage-*.json"
_KIB = 1 if sys.platform == "darwin" else 1024


class Usage(NamedTuple):
    """What an attempt used: the most that any of its processes did.

    Attributes:
        device: bytes of tensors on its GPU at most; None without one, and where vLLM has it.
        host: bytes of the process itself.
        seconds: of the whole stage, in the process that took longest.
        parts: of each part of its work, see `Pace`.
        checkpoint: bytes of a checkpoint; 0 without any.
    """

    device: int | None
    host: int
    seconds: float
    parts: list[list[tuple[float, int]]]
    checkpoint: int

    def seconds_of(self, scale: float) -> float:
        """Time of the stage with `scale` times the work: what is no work stays, such as loading."""
        rest, work = self.seconds, 0.0
        for reports in self.parts:
            # Where checkpoints were written, the time between the first two steps has none of that.
            (first_at, first), (then_at, then) = reports[0], reports[:2][-1] if self.checkpoint else reports[-1]
            each = (then_at - first_at) / (then - first) if then > first else then_at / max(1, then)
            spent = min(each * reports[-1][1], rest)
            rest, work = rest - spent, work + spent
        return rest + work * scale


def note_checkpoints(context: Context) -> None:
    """Remember the size of the largest checkpoint, before they are deleted."""
    folder = context.folder.work / "checkpoints"
    with contextlib.suppress(OSError):
        sizes = [sum(file.stat().st_size for file in files_below(path)) for path in folder.iterdir()]
        context.pace.checkpoint = max(sizes, default=0)


def write(context: Context) -> None:
    """Write what this process used."""
    torch = sys.modules.get("torch")
    on_gpu = torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized()
    value: dict[str, Any] = {
        "device": torch.cuda.max_memory_allocated() if torch is not None and on_gpu else None,
        "host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB,
        "seconds": time.monotonic() - context.pace.begun,
        "parts": context.pace.parts,
        "checkpoint": context.pace.checkpoint,
    }
    with contextlib.suppress(OSError):  # the disk may be full; the stage's own error counts
        atomic.write_json(context.attempt_dir / _PATTERN.replace("*", context.pool or str(context.rank)), value)


def read(attempt: Path) -> Usage | None:
    """What the processes of an attempt used; None where nothing was written."""
    found = [Usage(**read_json(path)) for path in sorted(attempt.glob(_PATTERN))]
    if not found:
        return None
    slowest = max(found, key=lambda usage: usage.seconds)
    devices = [usage.device for usage in found if usage.device is not None]
    return slowest._replace(
        device=max(devices, default=None),
        host=max(usage.host for usage in found),
        checkpoint=max(usage.checkpoint for usage in found),
    )
