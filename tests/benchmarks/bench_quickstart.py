"""Where the time of a run goes, stage by stage: the quickstart, or the recipe that is named.

    python -m tests.benchmarks.bench_quickstart [RECIPE] [--set KEY=VALUE ...]

`at work` is what the stage's own process spent between its first line and its commit; `around it` is what lies between
two stages: a process that starts, imports that are waited for, the commit as the runner sees it.
"""

import argparse
import tempfile
import time
from pathlib import Path

from spa_recipes.api import prepare, run_recipe
from spa_recipes.cli.progress import PlainReporter
from spa_recipes.plan import Stage
from spa_recipes.state.stagedir import Manifest
from tests.benchmarks.kit import where


class Clock(PlainReporter):
    """Notes when each stage was committed."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[Manifest, float]] = []
        self._then = time.perf_counter()

    def finished(self, stage: Stage, manifest: Manifest) -> None:
        """Note it."""
        now = time.perf_counter()
        self.rows.append((manifest, now - self._then))
        self._then = now


def main() -> None:
    """Print a line per stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", type=Path, default=Path("recipes/quickstart.yaml"))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder, clock:
        begin = time.perf_counter()
        run_recipe(prepare(arguments.recipe, overrides=[*arguments.set, f"storage.runs_dir={folder}"]), clock)
        total = time.perf_counter() - begin
    print(f"\n{arguments.recipe}: {total:.1f} s; {where(2)}")
    print(f"  {'stage':18} {'at work':>9} {'around it':>9} {'of all':>7} {'tokens/s':>9}")
    at_work = 0.0
    for manifest, seconds in clock.rows:
        at_work += manifest.seconds
        speed = f"{manifest.tokens / manifest.seconds:9.0f}" if manifest.tokens else ""
        around = seconds - manifest.seconds
        print(f"  {manifest.id:18} {manifest.seconds:7.1f} s {around:7.1f} s {seconds / total:7.1%} {speed}")
    print(f"  {'all stages':18} {at_work:7.1f} s {total - at_work:7.1f} s")


if __name__ == "__main__":
    main()
