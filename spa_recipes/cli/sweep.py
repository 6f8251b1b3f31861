"""`spa sweep`: its options, and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spa_recipes.cli.options import Accept, Trust

if TYPE_CHECKING:
    from spa_recipes.sweep import PreparedSweep, SweepRun


def sweep_recipes(
    file: Annotated[Path, typer.Argument(metavar="SWEEP", help="A sweep file (YAML).", show_default=False)],
    plan: Annotated[
        bool, typer.Option("--plan", help="Say how many runs and stages there are, and run nothing.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder of tables and figure; default: `sweeps/NAME`.")
    ] = None,
    accept: Accept = False,
    trust: Trust = False,
) -> None:
    """Run variants of a recipe on several seeds, and compare them.

    Runs share the stages that they have in common. A run that fails does not stop the others. At the end there is a
    table with the differences seed by seed, their intervals and Holm's correction. The same command again continues;
    in a second terminal it takes runs that the first one leaves.
    """
    from spa_recipes.sweep import prepare_sweep

    if plan:
        print_sweep_plan(prepare_sweep(file))
    else:
        run_and_print(prepare_sweep(file, afresh=True), out, accept=accept, trust=trust)


def print_sweep_plan(prepared: PreparedSweep) -> None:
    """Print a line per variant, and what is to do in all."""
    from spa_recipes.cli.terminal import bold, say, table
    from spa_recipes.estimates import steps_of
    from spa_recipes.units import count_of

    swept = prepared.sweep
    say(f"{bold(swept.name)}: {_size(prepared)}", "")
    steps = {stage.key: steps_of(stage) or 0 for run in prepared.runs for stage in run.prepared.plan.stages}
    left = steps.keys() - {key for run in prepared.runs for key in run.done_keys()}
    seen: set[str] = set()
    rows = []
    for variant in swept.variants:
        runs = [run for run in prepared.runs if variant.name in run.variants]
        keys = [stage.key for run in runs for stage in run.prepared.plan.stages]
        own = set(keys) - seen
        seen |= own
        cells = (len(keys), len(own), sum(steps[key] for key in own), sum(key not in left for key in keys))
        rows.append((variant.name, str(variant.policy), *(f"{count:,}" for count in cells), variant.label))
    headings = ("variant", "policy", "stages", "new ones", "steps", "done", "what it is")
    say(*table(headings, rows, right=headings[2:-1], wrap=False, shorten=True), "")
    for number, round_ in enumerate(swept.halving, start=1):
        kept = f"the best {round_.keep} by {swept.metrics[0]} and {swept.control} go on"
        say(f"round {number}: {count_of(round_.seeds, 'seed')}, then {kept}")
    most = " at most" if swept.halving else ""
    todo = f"{count_of(len(left), 'stage')} of {len(steps):,}, {sum(steps[key] for key in left):,} optimizer steps"
    say(
        f"to do{most}: {todo}",
        f"runs:   {prepared.runs[0].prepared.run.path.parent}",
    )


def run_and_print(prepared: PreparedSweep, out: Path | None, *, accept: bool, trust: bool) -> None:
    """Run the sweep, and print and write its tables.

    Raises:
        SpaError: some runs failed; it names them.
    """
    from spa_recipes.cli.consent import consent_of
    from spa_recipes.cli.progress import PlainReporter
    from spa_recipes.cli.terminal import bold, say
    from spa_recipes.report.sweep import page_markdown
    from spa_recipes.sweep import Told, default_out, failed, run_sweep, tables_of, write_tables

    say(f"{bold(prepared.sweep.name)}: {_size(prepared)}")
    with PlainReporter() as reporter:

        def begin(run: SweepRun, behind: int) -> PlainReporter:
            reporter.forget()
            reporter.say(f"{bold(run.name)} ({behind} more)")
            return reporter

        told = Told(begin, reporter.say)
        failures = run_sweep(prepared, told, consent=consent_of(reporter, trust=trust), accept=accept)
    found = tables_of(prepared)
    if found.measured:
        say("", *page_markdown(prepared.sweep, found.measured, found.compared, found.notes).splitlines()[2:], "")
        for path in write_tables(prepared, found, out or default_out(prepared.sweep)):
            say(f"table:  {path}")
    if failures:
        raise failed(failures, len(prepared.runs))


def _size(prepared: PreparedSweep) -> str:
    from spa_recipes.units import count_of

    keys = [stage.key for run in prepared.runs for stage in run.prepared.plan.stages]
    done = sum(not run.left() for run in prepared.runs)
    shared = len(keys) - len(set(keys))
    return (
        f"{count_of(len(prepared.sweep.variants), 'variant')} x {count_of(len(prepared.sweep.seeds), 'seed')}, "
        f"{count_of(len(prepared.runs), 'run')}, {done} of them done; {count_of(len(set(keys)), 'stage')}, "
        f"{shared} more shared"
    )
