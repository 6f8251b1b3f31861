"""What `spa gc` prints."""

from collections.abc import Sequence
from pathlib import Path

from spa_recipes.cli.terminal import bold, say
from spa_recipes.run.gc import Size, Sweep
from spa_recipes.units import human_bytes


def print_sweeps(sweeps: Sequence[Sweep], runs_dir: Path, *, deleted: bool, again: str) -> None:
    """Print the garbage of each run with its size and reason; `again` is the command that deletes it."""
    if not sweeps:
        say(f"no runs in {runs_dir}")
        return
    for sweep in sweeps:
        _print_sweep(sweep)
    every = [size for sweep in sweeps for _, size in sweep.items]
    total = Size(sum(size.freed for size in every), sum(size.shared for size in every))
    if not every:
        say("nothing to delete")
        return
    say(f"{'freed' if deleted else 'would free'} {human_bytes(total.freed)}")
    if total.shared:
        say(
            f"  {human_bytes(total.shared)} more are files with another name elsewhere, such as stages that another "
            "run took over: deleting one of the names frees nothing"
        )
    if not deleted:
        say(f"nothing was deleted; `{again}` does it")


def _print_sweep(sweep: Sweep) -> None:
    if sweep.skipped:
        say(f"{bold(sweep.run.name)}: skipped, {sweep.skipped}")
        return
    if not sweep.items and not sweep.kept and sweep.failed is None:
        return
    say(f"{bold(sweep.run.name)} in {sweep.run.path}")
    for item, size in sweep.items:
        shared = f", {human_bytes(size.shared)} shared" if size.shared else ""
        place = item.path.relative_to(sweep.run.path)
        say(f"  {human_bytes(size.freed):>8}  {place}: {item.why}{shared}")
    for kept in sweep.kept:
        say(f"  {'kept':>8}  {kept.path.relative_to(sweep.run.path)}: {kept.why}")
