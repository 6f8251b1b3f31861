"""The sweep behind the published table, and the record of what was measured.

python -m tests.kit.sweeps    writes the tables of the record into tests/benchmarks/README.md
"""

import csv
import re
from pathlib import Path

from spa_recipes.recipe.sweep import Sweep, load_sweep
from spa_recipes.report.sweep import Measured, compared, differences_markdown, variants_markdown

FOLDER = Path(__file__).parents[1] / "benchmarks"
SANDBOX = FOLDER / "sandbox.yaml"
RECORD = FOLDER / "sandbox.csv"
"""`values.csv` of that sweep."""
_TABLES = re.compile(r"(?:\|.*\n)+")


def sandbox() -> Sweep:
    """The sweep of the published table."""
    return load_sweep(SANDBOX).sweep


def recorded(sweep: Sweep) -> list[Measured]:
    """The figures of each variant on each seed, as `values.csv` has them."""
    with RECORD.open(newline="") as file:
        rows = [*csv.DictReader(file)]
    return [
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


def published() -> list[str]:
    """The tables of the record: the variants, and the differences of their win rates."""
    sweep = sandbox()
    measured = recorded(sweep)
    return [
        variants_markdown(sweep.metrics, measured),
        differences_markdown(sweep.metrics[0], compared(sweep, measured)),
    ]


def main() -> None:
    """Write the tables."""
    path = FOLDER / "README.md"
    before, heading, after = path.read_text().partition("## SPA against its controls\n")
    tables = iter(published())
    path.write_text(before + heading + _TABLES.sub(lambda _: next(tables), after, count=2))


if __name__ == "__main__":
    main()
