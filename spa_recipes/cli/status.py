"""What `spa status` prints: the runs of a folder, or the stages of one run."""

import time
from datetime import datetime
from pathlib import Path

from spa_recipes.cli.terminal import bold, lost_output, say, table, yellow
from spa_recipes.errors import RecipeError
from spa_recipes.report import figures
from spa_recipes.run.overview import Overview, disk_usage, overviews
from spa_recipes.units import for_shell, human_bytes, human_seconds


def print_runs(runs_dir: Path) -> None:
    """Print a line per run: how far, how large, since when, and what it came to."""
    runs = overviews(runs_dir)
    if not runs:
        say(f"no runs in {runs_dir}; start one with `spa run RECIPE`")
        return
    headings = ("run", "stages", "state", "size", "last touched", "")
    say(*table(headings, [_cells(run) for run in runs]))
    say(f"{human_bytes(disk_usage(runs))} in all; files that runs share count once")


def _cells(run: Overview) -> list[str]:
    touched = f"{datetime.fromtimestamp(run.touched):%Y-%m-%d %H:%M}" if run.touched else "-"
    win_rate = figures.phrase(run.evaluation, "win_rate_vs_init") if run.evaluation is not None else ""
    return [run.name, run.stages, run.state, human_bytes(sum(run.files.values())), touched, run.note or win_rate]


def print_run_status(name: str, runs_dir: Path) -> None:
    """Print the stages of a run with their figures.

    Raises:
        RecipeError: there is no such run, or nothing is in it.
    """
    from spa_recipes import api
    from spa_recipes.cli.summary import print_results
    from spa_recipes.run.decay import early_stop
    from spa_recipes.run.intact import remarks
    from spa_recipes.run.ray_cluster import waiting_for_room
    from spa_recipes.run.schedule import unfinished
    from spa_recipes.run.stall import stalled
    from spa_recipes.run.submit import job_of, queue_state
    from spa_recipes.state import usage

    job = job_of(runs_dir / name)
    if job is not None and not (runs_dir / name / "resolved.json").exists():
        say(f"{bold(name)} has not begun; job {job}: {queue_state(job) or 'not in the queue any more'}")
        return
    run = api.find_run(name, runs_dir)
    if run.recipe() is None:
        raise RecipeError("no run is there", where=str(run.path))
    prepared = api.prepare_resume(str(run.path), runs_dir)
    manifests = run.manifests(prepared.plan)
    holder = run.holder()
    say(f"{bold(run.name)} in {run.path}" + (f", held by {holder}" if holder else ""))
    if (job := job_of(run.path)) is not None and (queued := queue_state(job)) is not None:
        say(f"job {job}: {queued}")
    for what in waiting_for_room(run.path) if holder else ():
        say(what)
    for stage in prepared.plan.stages:
        state = run.status(stage, prepared.plan)
        manifest = manifests.get(stage.id)
        facts = figures.line(manifest) if manifest else ""
        if manifest and manifest.pruned:
            facts = ", ".join(filter(None, [facts, "weights freed by `spa gc`"]))
        seconds = human_seconds(manifest.seconds) if manifest else ""
        size = human_bytes(used) if (used := usage.size(run.stage_dir(stage, prepared.plan).path)) else ""
        say(f"  {stage.id:<18} {state:<12} {seconds:>10} {size:>8}  {facts}")
        if state in ("failed", "running"):
            attempt = run.stage_dir(stage, prepared.plan).attempts()[-1]
            if state == "failed":
                say(f"  {'':<18} log: {attempt / 'worker.log'}")
                continue
            for line in _how_far(attempt):
                say(f"  {'':<18} {line}")
            if stall := stalled(attempt):
                say(yellow(f"  {'':<18} {stall}"))
    print_results(prepared.plan.recipe, manifests)
    stop = early_stop(prepared.plan.recipe, manifests)
    if stop is not None:
        say(yellow(str(stop)))
    for line in remarks(run):
        say(yellow(line))
    left = unfinished(prepared.plan, run)
    if left and holder:
        say(f"next:    it is running; `spa status {for_shell(run.path)} --follow` tells how far it is until it ends")
    elif left:
        say(f"next:    `{run.resume_command}` continues with {left[0].id}")


def _how_far(attempt: Path) -> list[str]:
    """How far a stage at work is, and what processes of it still wait for."""
    from spa_recipes.run.pace import pace_of_attempt
    from spa_recipes.run.ray_cluster import waiting_for_room

    pace = pace_of_attempt(attempt)
    return [*([str(pace)] if pace else []), *waiting_for_room(attempt)]


def follow(name: str, runs_dir: Path, seconds: float = 5.0) -> None:
    """Print the status of a run, and then what changes, until no process holds the run.

    Raises:
        RecipeError: there is no such run.
    """
    from spa_recipes import api

    print_run_status(name, runs_dir)
    run = api.find_run(name, runs_dir)
    plan = api.prepare_resume(str(run.path), runs_dir).plan
    said: dict[str, str] = {}
    while run.holder() and lost_output() is None:
        for stage in plan.stages:
            state = run.status(stage, plan)
            attempts = run.stage_dir(stage, plan).attempts() if state == "running" else []
            how_far = "; ".join(_how_far(attempts[-1])) if attempts else ""
            line = f"{state}: {how_far}" if how_far else state
            if said.get(stage.id, line) != line:
                say(f"  {datetime.now():%H:%M:%S}  {stage.id:<18} {line}")
            said[stage.id] = line
        time.sleep(seconds)
    if lost_output() is None:
        say("")
        print_run_status(name, runs_dir)
