"""The sweeps behind the published tables, and the records of what was measured.

python -m tests.kit.sweeps    writes the tables of the records into tests/benchmarks/README.md
"""

import csv
import re
from pathlib import Path
from typing import NamedTuple

from spa_recipes.recipe.sweep import LoadedSweep, load_sweep
from spa_recipes.report.sweep import Measured, compared, differences_markdown, variants_markdown

FOLDER = Path(__file__).parents[1] / "benchmarks"
_TABLES = re.compile(r"(?:\|.*\n)+")


class Published(NamedTuple):
    """A sweep of the folder, whose `values.csv` is the record beside it, and the heading of its tables."""

    name: str
    heading: str

    @property
    def loaded(self) -> LoadedSweep:
        """The sweep."""
        return load_sweep(FOLDER / f"{self.name}.yaml")

    def recorded(self) -> list[Measured]:
        """The figures of each variant on each seed, as far as the record has them."""
        sweep = self.loaded.sweep
        with (FOLDER / f"{self.name}.csv").open(newline="") as file:
            rows = [*csv.DictReader(file)]
        found = [
            Measured(
                variant,
                {
                    int(row["seed"]): {name: float(row[name]) if row[name] else None for name in sweep.metrics}
                    for row in rows
                    if row["variant"] == variant.name
                },
            )
            for variant in sweep.variants
        ]
        return [one for one in found if one.seeds]

    def tables(self) -> list[str]:
        """The tables of the record: the variants, and the differences of their win rates."""
        sweep, measured = self.loaded.sweep, self.recorded()
        return [
            variants_markdown(sweep.metrics, measured),
            differences_markdown(sweep.metrics[0], compared(sweep, measured)),
        ]


SANDBOX = Published("sandbox", "SPA against its controls")
FRESH = Published("sandbox_fresh", "The best of each, on fresh seeds")
FRESH_0P8 = Published("sandbox_fresh_0p8", "The same with 0.8 % of the labels")
PUBLISHED = (SANDBOX, FRESH, FRESH_0P8)


def main() -> None:
    """Write the tables."""
    path = FOLDER / "README.md"
    for one in PUBLISHED:
        before, heading, after = path.read_text().partition(f"## {one.heading}\n")
        for table in one.tables():
            old, rest = _split_at_table(after)
            before, heading, after = before + heading, old + table, rest
        path.write_text(before + heading + after)


def _split_at_table(text: str) -> tuple[str, str]:
    """The text before the first table, and that after it."""
    found = _TABLES.search(text)
    assert found is not None
    return text[: found.start()], text[found.end() :]


if __name__ == "__main__":
    main()
