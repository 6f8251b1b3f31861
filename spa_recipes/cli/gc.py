"""What `spa gc` prints."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from spa_recipes.estimates import human_bytes
from spa_recipes.run.gc import Size, Sweep

_out = Console(highlight=False)


def print_sweeps(sweeps: Sequence[Sweep], runs_dir: Path, *, deleted: bool, again: str) -> None:
    """The garbage of each run with its size and reason; `again` is the command that deletes it."""
    if not sweeps:
        _say(f"no runs in {runs_dir}")
        return
    for sweep in sweeps:
        _print_sweep(sweep)
    every = [size for sweep in sweeps for _, size in sweep.items]
    total = Size(sum(size.freed for size in every), sum(size.shared for size in every))
    if not every:
        _say("nothing to delete")
        return
    _say(f"{'freed' if deleted else 'would free'} {human_bytes(total.freed)}")
    if total.shared:
        _say(
            f"  {human_bytes(total.shared)} more are files with another name elsewhere, such as stages that another "
            "run took over: deleting one of the names frees nothing"
        )
    if not deleted:
        _say(f"nothing was deleted; `{again}` does it")


def _print_sweep(sweep: Sweep) -> None:
    if sweep.skipped:
        _say(f"[bold]{escape(sweep.run.name)}[/]: skipped, {escape(sweep.skipped)}")
        return
    if not sweep.items and not sweep.kept:
        return
    _say(f"[bold]{escape(sweep.run.name)}[/] in {escape(str(sweep.run.path))}")
    for item, size in sweep.items:
        shared = f", {human_bytes(size.shared)} shared" if size.shared else ""
        place = escape(str(item.path.relative_to(sweep.run.path)))
        _say(f"  {human_bytes(size.freed):>8}  {place}: {escape(item.why)}{shared}")
    for kept in sweep.kept:
        _say(f"  {'kept':>8}  {escape(str(kept.path.relative_to(sweep.run.path)))}: {escape(kept.why)}")


def _say(text: str) -> None:
    _out.print(text, soft_wrap=True)
