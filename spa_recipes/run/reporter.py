"""Who is told what happens in a run, and in which order."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from spa_recipes.plan import Stage
from spa_recipes.state.stagedir import Manifest


class Reporter(Protocol):
    """Who is told what happens. One that raises OSError reaches nobody any more: it is told nothing after that."""

    def reused(self, stage: Stage, manifest: Manifest, *, adopted: bool) -> None:
        """A finished stage of this run, or (`adopted`) of another run, is used again."""

    def damaged(self, stage: Stage, problems: list[str], aside: Path) -> None:
        """A finished stage was altered afterwards; it was set aside and will be done again."""

    def started(self, stage: Stage, attempt: int) -> None:
        """A stage's process was started."""

    def noticed(self, stage: Stage, text: str) -> None:
        """The running stage found something that a person should know, such as a damaged shard."""

    def progress(self, stage: Stage, done: int, total: int, unit: str, note: str) -> None:
        """How far the running stage is. Comes at once, so it may come before `started` of a stage that runs beside
        another one."""

    def finished(self, stage: Stage, manifest: Manifest) -> None:
        """A stage was committed."""


class PlanOrder:
    """A reporter that passes messages on in the order of the plan, whichever of several running stages is faster.

    The messages of a stage stay together. They wait until the stages before it have ended; only `progress` never waits.
    Where the reporter reaches nobody, `unheard` is told why, once, and the run goes on.
    """

    def __init__(self, reporter: Reporter, stages: Sequence[Stage], unheard: Callable[[OSError], None]) -> None:
        self._reporter, self._unheard, self._is_heard = reporter, unheard, True
        self._waiting: dict[str, list[Callable[[], None]]] = {stage.id: [] for stage in stages}
        self._ended: set[str] = set()

    def reused(self, stage: Stage, manifest: Manifest, *, adopted: bool) -> None:
        """See `Reporter`."""
        self._tell(stage, partial(self._reporter.reused, stage, manifest, adopted=adopted), last=True)

    def damaged(self, stage: Stage, problems: list[str], aside: Path) -> None:
        """See `Reporter`."""
        self._tell(stage, partial(self._reporter.damaged, stage, problems, aside))

    def started(self, stage: Stage, attempt: int) -> None:
        """See `Reporter`."""
        self._tell(stage, partial(self._reporter.started, stage, attempt))

    def noticed(self, stage: Stage, text: str) -> None:
        """See `Reporter`."""
        self._tell(stage, partial(self._reporter.noticed, stage, text))

    def progress(self, stage: Stage, done: int, total: int, unit: str, note: str) -> None:
        """See `Reporter`."""
        self._pass_on([partial(self._reporter.progress, stage, done, total, unit, note)])

    def finished(self, stage: Stage, manifest: Manifest) -> None:
        """See `Reporter`."""
        self._tell(stage, partial(self._reporter.finished, stage, manifest), last=True)

    def flush(self) -> None:
        """Pass on what still waits; for the end of a run, when some stages have not ended and will not."""
        for messages in self._waiting.values():
            self._pass_on(messages)

    def _tell(self, stage: Stage, message: Callable[[], None], *, last: bool = False) -> None:
        self._waiting[stage.id].append(message)
        if last:
            self._ended.add(stage.id)
        while self._waiting:
            first = next(iter(self._waiting))
            self._pass_on(self._waiting[first])
            if first not in self._ended:
                return
            del self._waiting[first]

    def _pass_on(self, messages: list[Callable[[], None]]) -> None:
        while messages:
            message = messages.pop(0)
            if not self._is_heard:
                continue
            try:
                message()
            except OSError as error:
                self._is_heard = False
                self._unheard(error)
