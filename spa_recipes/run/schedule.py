"""Which stages of a plan are done, in which order, and how many at a time."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from graphlib import TopologicalSorter
from typing import Protocol

from spa_recipes.errors import SpaError
from spa_recipes.plan import Plan, Stage
from spa_recipes.run.decay import early_stop
from spa_recipes.run.rundir import RunDir
from spa_recipes.state.stagedir import Manifest

POLL_SECONDS = 0.05


class Job(Protocol):
    """A stage at work."""

    def poll(self) -> Manifest | None:
        """The manifest of the finished stage, None while it runs; SpaError if it failed, after which it is over."""

    def stop(self) -> None:
        """End it; returns when nothing of it runs any more."""


Begin = Callable[[Stage, Sequence[Stage]], Manifest | Job | None]
"""Begins a stage beside the running ones. Returns its manifest if it need not run, else the job that does it; None if
it cannot begin beside them, and is to be tried again when one of them has ended."""


def do_stages(
    plan: Plan,
    stages: Sequence[Stage],
    begin: Begin,
    *,
    room: int,
    still_ours: Callable[[], None] = lambda: None,
) -> dict[str, Manifest]:
    """Do stages as they become ready, at most `room` at a time; returns their manifests in the order of the plan.

    Of the stages that are ready, the first in the plan begins first, so with room for one they are done in the order of
    the plan. The stages that the stop rule rules out are left out. However this ends, no job is left running.

    Args:
        stages: some of the plan's, with all that they wait for, in the order of the plan.
        still_ours: called again and again while stages run; an error that it raises ends them.

    Raises:
        SpaError: a stage failed; of several that failed at a time, the first in the plan. The others were stopped.
    """
    schedule = _Schedule(plan, stages, begin, room)
    try:
        schedule.begin_what_fits()
        while schedule.running:
            time.sleep(POLL_SECONDS)
            still_ours()
            schedule.poll()
            schedule.begin_what_fits()
    except BaseException:
        with ExitStack() as stack:  # stops all of them, even if stopping one of them fails
            for job in schedule.running.values():
                stack.callback(job.stop)
        raise
    return {stage.id: schedule.manifests[stage.id] for stage in stages if stage.id in schedule.manifests}


class _Schedule:
    """The stages that are ready, running and done.

    Attributes:
        running: jobs by stage, in the order in which they began.
        manifests: of the stages that are done, in the order in which they ended.
    """

    def __init__(self, plan: Plan, stages: Sequence[Stage], begin: Begin, room: int) -> None:
        self._plan, self._stages, self._begin, self._room = plan, stages, begin, room
        self._sorter = TopologicalSorter({stage.id: stage.waits_for for stage in stages})
        self._sorter.prepare()
        self._ready = set(self._sorter.get_ready())
        self._waits = False  # a stage that is ready waits for a running one to end
        self._ruled_out: set[str] = set()
        self.running: dict[str, Job] = {}
        self.manifests: dict[str, Manifest] = {}

    def begin_what_fits(self) -> None:
        """Begin stages while some are ready and there is room."""
        while not self._waits and len(self.running) < self._room and (stage := self._next()) is not None:
            begun = self._begin(stage, [other for other in self._stages if other.id in self.running])
            if begun is None:
                self._waits = True
                return
            self._ready.remove(stage.id)
            if isinstance(begun, Manifest):
                self._end(stage.id, begun)
            else:
                self.running[stage.id] = begun

    def poll(self) -> None:
        """Look after all running jobs; raises the error of the first in the plan that failed."""
        failures: list[SpaError] = []
        for stage in self._stages:
            if stage.id not in self.running:
                continue
            try:
                manifest = self.running[stage.id].poll()
            except SpaError as error:
                del self.running[stage.id]
                failures.append(error)
                continue
            if manifest is not None:
                del self.running[stage.id]
                self._end(stage.id, manifest)
        if failures:
            raise failures[0]

    def _next(self) -> Stage | None:
        """The first stage of the plan that is ready and wanted."""
        return next((s for s in self._stages if s.id in self._ready and s.id not in self._ruled_out), None)

    def _end(self, stage_id: str, manifest: Manifest) -> None:
        self.manifests[stage_id] = manifest
        self._sorter.done(stage_id)
        self._ready |= set(self._sorter.get_ready())
        self._waits = False
        self._ruled_out = ruled_out(self._plan, self.manifests)


def ruled_out(plan: Plan, manifests: Mapping[str, Manifest]) -> set[str]:
    """Ids of the stages that a stop rule does not want: the one that it forbids, and all that needs it."""
    stop = early_stop(plan.recipe, manifests)
    return set() if stop is None else plan.from_on(stop.stage)


def wanted_manifests(plan: Plan, run: RunDir) -> dict[str, Manifest]:
    """Manifests of the committed stages that are not ruled out: a run without the rule may have done more."""
    manifests = run.manifests(plan)
    unwanted = ruled_out(plan, manifests)
    return {name: manifest for name, manifest in manifests.items() if name not in unwanted}


def unfinished(plan: Plan, run: RunDir) -> list[Stage]:
    """Stages that are still to be done: neither committed nor ruled out."""
    unwanted = ruled_out(plan, run.manifests(plan))
    return [stage for stage in plan.stages if not run.is_done(stage, plan) and stage.id not in unwanted]
