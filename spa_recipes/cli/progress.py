"""What a run says while it works: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, cast

from spa_recipes import api
from spa_recipes.cli.terminal import Output, bold, coloured, cyan, green, lost_output, say, visible, yellow
from spa_recipes.plan import Stage
from spa_recipes.report import figures
from spa_recipes.run.pace import current_work, pace_of
from spa_recipes.run.schedule import unfinished
from spa_recipes.state.stagedir import Manifest
from spa_recipes.units import human_seconds

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


FIRST_LINE_SECONDS, LINE_SECONDS = 10.0, 60.0
"""Where there is no terminal, a stage's progress is told after so long, and then so often."""


class PlainReporter:
    """Tells what happens to the stages of a run (see `spa_recipes.run.reporter.Reporter`)."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._steps: dict[str, list[dict[str, Any]]] = {}
        self._due: dict[str, float] = {}

    def __enter__(self) -> PlainReporter:
        if sys.stdout.isatty():
            self._bar = _new_bar()
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Take the bar off the terminal, for a question."""
        if self._bar is not None:
            self._bar.stop()
        yield
        if self._bar is not None:
            self._bar.start()

    def forget(self) -> None:
        """Forget the stages of a run that is over, one way or another."""
        if self._bar is not None:
            for task in self._tasks.values():
                self._bar.remove_task(task)
        for table in (self._tasks, self._steps, self._due):
            table.clear()

    def _task(self, bar: Progress, stage: Stage) -> TaskID:
        """The stage's own bar, made when it is first needed: its progress may come before its start is told."""
        if stage.id not in self._tasks:
            self._tasks[stage.id] = bar.add_task(stage.id, total=None, unit="", note="")
        return self._tasks[stage.id]

    def say(self, text: str) -> None:
        """Print a line that stays.

        Raises:
            OSError: nobody reads the output (see `Reporter`).
        """
        if self._bar is None:
            say(text)
        else:
            from rich.text import Text

            self._bar.console.print(Text.from_ansi(coloured(text)), soft_wrap=True)
        _raise_if_lost()

    def reused(self, stage: Stage, manifest: Manifest, *, adopted: bool) -> None:
        """See `Reporter`."""
        where = f"from run {manifest.reused_from}" if adopted else "done before"
        self.say(f"  {cyan('=')} {stage.id:<18} {where}")

    def damaged(self, stage: Stage, problems: list[str], aside: Path) -> None:
        """See `Reporter`."""
        self.say(f"  {yellow('!')} {stage.id:<18} {'; '.join(problems)}: set aside as {aside.name}, done again")

    def started(self, stage: Stage, attempt: int) -> None:
        """See `Reporter`."""
        note = f" (attempt {attempt})" if attempt > 1 else ""
        if self._bar is None:
            self.say(f"  > {stage.id:<18} {stage.role}{note}")
        else:
            self._bar.update(self._task(self._bar, stage), description=visible(f"{stage.id}{note}"))

    def noticed(self, stage: Stage, text: str) -> None:
        """See `Reporter`."""
        self.say(f"  {yellow('!')} {stage.id:<18} {text}")

    def progress(self, stage: Stage, done: int, total: int, unit: str, note: str) -> None:
        """See `Reporter`."""
        if self._bar is not None:
            task = self._task(self._bar, stage)
            self._bar.update(task, completed=done, total=total, unit=unit, note=visible(note))
            _raise_if_lost()
            return
        now = time.monotonic()
        line = {"done": done, "total": total, "unit": unit, "note": note, "time": now}
        steps = self._steps[stage.id] = current_work([*self._steps.get(stage.id, []), line])
        if len(steps) > 2:  # the first one, the newest one, and the newest note
            steps[-1]["note"] = steps[-1]["note"] or steps[-2]["note"]
            del steps[1:-1]
        if now >= self._due.setdefault(stage.id, now + FIRST_LINE_SECONDS) and done < total:
            self._due[stage.id] = now + LINE_SECONDS
            self.say(f"    {stage.id:<18} {pace_of(steps)}")

    def finished(self, stage: Stage, manifest: Manifest) -> None:
        """See `Reporter`."""
        if self._bar is not None:
            self._bar.remove_task(self._task(self._bar, stage))
            del self._tasks[stage.id]
        self._steps.pop(stage.id, None)
        self._due.pop(stage.id, None)
        self.say(f"  {green('+')} {stage.id:<18} {human_seconds(manifest.seconds):>8}  {figures.line(manifest)}")


class RunReporter(PlainReporter):
    """The same for a run: says first what will run and where."""

    def __init__(self, prepared: api.Prepared) -> None:
        super().__init__()
        left = len(unfinished(prepared.plan, prepared.run))
        total = len(prepared.plan.stages)
        begun = "" if left == total else f", {total - left} of {total} stages done before"
        say(f"{bold(prepared.plan.recipe.name)} in {prepared.run.path}{begun}")


def _raise_if_lost() -> None:
    if (error := lost_output()) is not None:
        raise error


def _new_bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    output = Output()
    return Progress(
        SpinnerColumn("dots" if output.encoding.startswith("utf") else "line"),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]} {task.fields[note]}", markup=False),
        TimeElapsedColumn(),
        console=Console(file=cast(IO[str], output), highlight=False, markup=False, emoji=False),
        transient=True,
        redirect_stdout=False,  # all that a run prints on it goes through the bar's console
    )
