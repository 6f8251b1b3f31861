"""A pool: independent workers that take the shards of one stage, until all shards are there.

Files decide, never exit codes: a worker is done when it has left its mark, which it does once every shard of the stage
is there, whoever made it. One that ends without a mark and without a reason is lost: its claims become free, the others
take them, and another worker begins in its place. When the shards are there, the ordinary process of the stage runs
alone, finds them, joins them and commits.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

from spa_recipes.run.failure import error_files, is_consequence
from spa_recipes.run.processes import Running
from spa_recipes.stages.context import DONE
from spa_recipes.state import claims
from spa_recipes.state.reading import read_text

END_SECONDS = 10.0
"""Seconds that the other workers have to see that all shards are there."""

Begin = Callable[[str | None, int], Running]
"""Starts the worker of this name in a slot; None names the ordinary process of the stage."""


class Pool:
    """The processes of a stage that is done in shards.

    Args:
        begin: starts a process.
        size: workers, each in a slot of its own.
        attempt: folder of the attempt.
        restarts: how many lost workers are replaced.
    """

    def __init__(self, begin: Begin, size: int, attempt: Path, *, restarts: int) -> None:
        self._begin, self._attempt, self._restarts = begin, attempt, restarts
        self._begun = 0
        self._workers: dict[int, tuple[str, Running]] = {}
        self._joiner: Running | None = None
        self._done_since: float | None = None
        self._last_code = 0
        for slot in range(size):
            self._add(slot)

    def poll(self) -> int | None:
        """The exit code of the process that joined the shards, or of a worker that failed; None while they run."""
        if self._joiner is not None:
            return self._joiner.poll()
        for slot, (name, worker) in list(self._workers.items()):
            code = worker.poll()
            if code is None:
                continue
            del self._workers[slot]
            self._last_code = code
            if self._is_done(name):
                continue
            if self._failed(name):
                self.stop()
                return code or 1
            self._replace(slot, name, code)
        if not self._workers and self._done_since is None:
            return self._last_code  # all were lost, and there is no manifest
        if self._done_since is not None and (not self._workers or time.monotonic() > self._done_since + END_SECONDS):
            self.stop()  # what is left waits for a machine that is not there
            self._joiner = self._begin(None, 0)
        return None

    def stop(self) -> None:
        """End them all."""
        for _, worker in self._workers.values():
            worker.stop()
        self._workers.clear()
        if self._joiner is not None:
            self._joiner.stop()

    def _add(self, slot: int) -> None:
        name = f"pool-{self._begun}"
        self._begun += 1
        self._workers[slot] = (name, self._begin(name, slot))

    def _is_done(self, name: str) -> bool:
        if not (self._attempt / f"{DONE}-{name}").exists():
            return False
        if self._done_since is None:
            self._done_since = time.monotonic()
        return True

    def _failed(self, name: str) -> bool:
        """Whether a worker left a reason that is its own."""
        return any(
            path.stem == f"error-{name}" and not is_consequence(read_text(path)) for path in error_files(self._attempt)
        )

    def _replace(self, slot: int, name: str, code: int) -> None:
        """Free what a lost worker had taken, and begin another in its place."""
        freed = claims.free(self._attempt, name)
        what = f"worker {name} is gone (exit code {code}) and left no reason: {freed} of its shards are free again"
        if self._restarts and self._done_since is None:
            self._restarts -= 1
            self._add(slot)
            what += f", and another begins in its place ({self._restarts} more at most)"
        with (self._attempt / "progress-pool.jsonl").open("a") as handle:
            handle.write(json.dumps({"notice": what}) + "\n")
