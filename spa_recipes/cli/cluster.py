"""The commands for runs that are jobs of a cluster: `spa submit` and `spa cancel`."""

from pathlib import Path
from typing import Annotated

import typer

from spa_recipes.cli.options import Accept, RecipeArgument, RunDirOption, RunName, RunsDir, Set, Trust, Until


def submit(
    recipe: RecipeArgument,
    run_dir: RunDirOption = None,
    set_: Set = None,
    until: Until = None,
    accept: Accept = False,
    trust: Trust = False,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="Submit a rehearsal, as `spa run RECIPE --rehearse` does one.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the script, and submit nothing.")] = False,
) -> None:
    """Submit a recipe, or a run that stopped, as a Slurm job.

    The recipe says which nodes in `compute.executor`. The run goes on inside of the job as with `spa run`.
    """
    from spa_recipes import api
    from spa_recipes.cli.consent import consent_of
    from spa_recipes.cli.progress import RunReporter
    from spa_recipes.cli.terminal import say
    from spa_recipes.units import for_shell

    full = api.prepare(recipe, overrides=set_ or [], run_dir=run_dir, afresh=True)
    prepared = api.prepare_rehearsal(full) if rehearse else full
    options = [text for each in set_ or [] for text in ("--set", each)]
    options += ["--until", until] if until is not None else []
    options += ["--accept"] if accept else []
    options += ["--rehearse"] if rehearse else []
    if dry_run:
        say(*api.job_script(prepared, recipe, options, full.run.path).splitlines())
        return
    with RunReporter(prepared) as reporter:
        consent = consent_of(reporter, trust=trust, overrides=set_ or [])
        job = api.submit(prepared, recipe, options, consent, full.run.path)
    run, what = for_shell(prepared.run.path), "a rehearsal of " if rehearse else ""
    say(f"submitted {what}{prepared.plan.recipe.name} as job {job}: `spa status {run}` shows how far it is")
    if rehearse:
        say(f"what it finds is at the end of the job's log: {prepared.run.path / f'slurm-{job}.log'}")


def cancel(run: RunName, runs_dir: RunsDir = Path("runs")) -> None:
    """Cancel the Slurm job of a run; finished work is kept."""
    from spa_recipes import api
    from spa_recipes.cli.terminal import say

    job = api.cancel(run, runs_dir)
    say(f"cancelled job {job}; `spa submit RECIPE` goes on with {run}")
