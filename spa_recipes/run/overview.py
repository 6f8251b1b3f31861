"""A run in one line, read from its folder alone: no recipe is planned, and its data and models need not exist."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from spa_recipes.errors import DAMAGE, SpaError
from spa_recipes.run.rundir import Planned, RunDir, all_runs, last_touched
from spa_recipes.run.stall import idle_seconds
from spa_recipes.state.stagedir import Manifest
from spa_recipes.state.usage import inodes
from spa_recipes.units import human_seconds


class Overview(NamedTuple):
    """A run as `spa status` lists it.

    Attributes:
        stages: done and all, such as `3/16`; `?` if the plan cannot be read.
        note: the next stage, that one makes no progress, or what is wrong with the run; empty if it is finished.
        evaluation: that of its newest policy with a win rate; None if it is not finished, or none was measured.
        touched: time of the newest event, in seconds since the epoch.
        files: bytes by inode, so that files which runs share can be counted once.
    """

    name: str
    stages: str
    state: str
    note: str
    evaluation: Manifest | None
    touched: float
    files: dict[tuple[int, int], int]


def overviews(runs_dir: Path) -> list[Overview]:
    """The runs of a folder, most recently touched first."""
    return [_overview(run) for run in all_runs(runs_dir)]


def disk_usage(runs: Sequence[Overview]) -> int:
    """Bytes of all runs together; a file that several of them have counts once."""
    everything: dict[tuple[int, int], int] = {}
    for run in runs:
        everything |= run.files
    return sum(everything.values())


def next_stage(run: RunDir) -> str | None:
    """Id of the first stage of the plan that is still to be done; None if the run is finished or the rule stopped it.

    Raises:
        RecipeError: the run's plan cannot be read.
    """
    planned = run.planned()
    done = run.done(planned)
    if _state(run, planned, done)[0] in ("done", "stopped early"):
        return None
    return next(stage.id for stage in planned if stage.id not in done)


def _overview(run: RunDir) -> Overview:
    touched, content = last_touched(run), inodes(run.path)
    try:
        run.check()
        planned = run.planned()
        done = run.done(planned)
        state, note, evaluation = _state(run, planned, done)
    except (SpaError, *DAMAGE) as error:  # whatever is in one run's folder, the other runs are listed
        return Overview(run.name, "?", "unreadable", " ".join(str(error).split()), None, touched, content)
    return Overview(run.name, f"{len(done)}/{len(planned)}", state, note, evaluation, touched, content)


def _state(run: RunDir, planned: Sequence[Planned], done: set[str]) -> tuple[str, str, Manifest | None]:
    """The state of a run, the note on an unfinished one, and the evaluation of a finished one."""
    manifests = {
        stage.id: manifest
        for stage in planned
        if stage.id in done and (folder := run.existing(stage)) and (manifest := folder.manifest())
    }
    if len(done) == len(planned):
        return "done", "", _rated(manifests)
    if _stopped_early(run, manifests):
        return "stopped early", "", _rated(manifests)
    left = [stage for stage in planned if stage.id not in done]
    folders = {stage.id: folder for stage in left if (folder := run.existing(stage)) is not None}
    states = {name: run.status_unfinished(folder) for name, folder in folders.items()}
    state = next((state for state in ("running", "failed", "interrupted") if state in states.values()), "unfinished")
    stalled = [
        f"{name} has made no progress for {human_seconds(seconds)}"
        for name, folder in folders.items()
        if states[name] == "running" and (seconds := idle_seconds(folder.attempts()[-1])) is not None
    ]
    return state, "; ".join(stalled) or f"next: {left[0].id}", None


def _stopped_early(run: RunDir, manifests: dict[str, Manifest]) -> bool:
    """Whether the rest of the run is not wanted because its judge got worse, or knows too little."""
    from spa_recipes.run.decay import early_stop

    try:
        recipe = run.recipe()
    except SpaError:  # of another version, or altered: `spa resume` says so
        return False
    return recipe is not None and early_stop(recipe, manifests) is not None


def _rated(manifests: dict[str, Manifest]) -> Manifest | None:
    """The newest evaluation with a win rate.

    Raises:
        DataError: its win rate is no number.
    """
    name = "win_rate_vs_init"
    own = [manifest for stage, manifest in manifests.items() if stage != "evaluate-control"]
    rated = [manifest for manifest in own if manifest.metrics.get(name) is not None]
    for manifest in rated:
        manifest.number(name)
    return rated[-1] if rated else None
