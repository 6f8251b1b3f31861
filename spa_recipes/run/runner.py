"""Does a plan: reuses the stages whose results are there, runs the others, and stops at the first failure."""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from spa_recipes.errors import TryAgainError
from spa_recipes.plan import MODEL, Plan, Stage
from spa_recipes.run import final
from spa_recipes.run.changes import refuse_changes, refuse_newer
from spa_recipes.run.decay import Stop, early_stop
from spa_recipes.run.disk import disk_error, room_needed, still_to_write
from spa_recipes.run.executors import Executors
from spa_recipes.run.job import StageJob
from spa_recipes.run.reporter import PlanOrder, Reporter
from spa_recipes.run.reuse import finished, reuse, say_what_others_have, set_damaged_aside
from spa_recipes.run.rundir import RunDir
from spa_recipes.run.schedule import do_stages, unfinished, wanted_manifests
from spa_recipes.state import offers
from spa_recipes.state.stagedir import Manifest

Describe = Callable[[Plan, Mapping[str, Manifest]], dict[str, str]]
"""Writes what goes beside the final model, by file name, from the manifests of a finished run."""


class Outcome(NamedTuple):
    """What a call of `execute` came to.

    Attributes:
        manifests: of the stages that it was asked for and that are done, in the order of the plan.
        left: stages of the plan that are still to be done, in its order; none if the run is complete.
        seconds: wall clock of the call.
        stop: why a stop rule does not want the rest of the plan, if it does not.
    """

    manifests: dict[str, Manifest]
    left: tuple[Stage, ...]
    seconds: float
    stop: Stop | None = None

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return not self.left


def execute(
    plan: Plan,
    run: RunDir,
    recipe_text: str | None,
    *,
    recipe_path: Path | None = None,
    until: str | None,
    accept: bool,
    reporter: Reporter,
    executors: Executors | None = None,
    describe: Describe | None = None,
) -> Outcome:
    """Do what is left of a plan in `run`: all of it, or the stage `until` and what it needs.

    Args:
        recipe_text: for `recipe.yaml`; None leaves the file as it is.
        recipe_path: where the text was read.
        executors: of a caller that has several runs; it closes them itself.
        describe: writes the texts beside the final model of a run that is complete; None writes none.

    Raises:
        LockedError: another process holds the run.
        NewerVersionError: a newer version of this package worked on it.
        RecipeChangedError: the run was started with another recipe and `accept` is False.
        TryAgainError: the disk is full, too small or broken; DataError: nothing can be written, and something is to be
            done.
        SpaError: a stage failed; its class gives the exit code.
    """
    begin = time.monotonic()
    stages = plan.until(until)
    refuse_newer(plan, run)
    if run.is_read_only:
        refuse_changes(plan, run)
        told = PlanOrder(reporter, stages, unheard=lambda error: None)
        manifests = do_stages(plan, stages, lambda stage, _: finished(plan, run, told, stage), room=1)
    else:
        starts = executors or Executors(plan.recipe.compute.executor)
        try:
            with run.locked() as still_ours:
                if not accept:
                    refuse_changes(plan, run)
                run.write_recipe(recipe_text, plan.recipe, plan, path=recipe_path)
                manifests = _go_on(plan, run, stages, starts, reporter, describe, still_ours)
        except OSError as error:
            explained = disk_error(error, run.path, where=run.name)
            if explained is None:
                raise
            raise explained from error
        finally:
            if executors is None:
                starts.close()
    left = tuple(unfinished(plan, run))
    return Outcome(manifests, left, time.monotonic() - begin, early_stop(plan.recipe, run.manifests(plan)))


def _go_on(
    plan: Plan,
    run: RunDir,
    stages: Sequence[Stage],
    executors: Executors,
    reporter: Reporter,
    describe: Describe | None,
    still_ours: Callable[[], None],
) -> dict[str, Manifest]:
    """Do the stages of a run that this process holds; show the final model if that completes the run."""
    run.log_event("run started", stages=[stage.id for stage in stages])
    in_order = PlanOrder(reporter, stages, unheard=partial(_note_unheard, run))
    if missing := offers.missing(run.path):
        note = f"this file system has {'; '.join(missing)}"
        run.log_event("file system", text=note)
        in_order.noticed(stages[0], note)
    begin = partial(_begin, plan, run, executors, in_order)
    try:
        set_damaged_aside(plan, run, in_order, stages)
        left = [stage for stage in stages if not run.is_done(stage, plan)]
        executors.look_at_nodes(run.path, left, plan.recipe.compute)
        say_what_others_have(plan, run, in_order, stages)
        manifests = do_stages(plan, stages, begin, room=executors.room, still_ours=still_ours)
    except BaseException as error:
        with contextlib.suppress(OSError):  # what stopped the run counts, not that the disk has no room to note it
            run.log_event("run stopped", reason=f"{type(error).__name__}: {error}".splitlines()[0])
        raise
    finally:
        in_order.flush()
    if unfinished(plan, run):
        run.log_event("run paused")
        return manifests
    wanted = wanted_manifests(plan, run)
    made = plan.newest_model(wanted)
    if made is not None:
        final.show(run, run.stage_dir(made, plan).output / MODEL, describe(plan, wanted) if describe else {})
    stop = early_stop(plan.recipe, wanted)
    run.log_event("run finished", **({"reason": str(stop)} if stop else {}))
    return manifests


def _note_unheard(run: RunDir, error: OSError) -> None:
    with contextlib.suppress(OSError):
        run.log_event("nobody reads the output", reason=error.strerror or str(error))


def _begin(
    plan: Plan, run: RunDir, executors: Executors, reporter: Reporter, stage: Stage, running: Sequence[Stage]
) -> Manifest | StageJob | None:
    """Reuse a stage, or start it where the disk has room for it beside the running ones (see `schedule.Begin`)."""
    manifest = reuse(plan, run, reporter, stage)
    if manifest is not None:
        return manifest
    promised = sum(still_to_write(other, plan, run.stage_dir(other, plan)) or 0 for other in running)
    try:
        needed = room_needed(stage, plan, run.stage_dir(stage, plan), promised=promised)
    except TryAgainError:
        if running:  # there may be room when one of them has ended
            return None
        raise
    return StageJob(plan, run, stage, executors, reporter, disk_needed=needed)
