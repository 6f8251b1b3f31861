"""What people said of a run's pairs (`spa label RUN`), beside what its judge said."""

from pathlib import Path

from spa_recipes.label.file import rows_in
from spa_recipes.label.tally import with_judge
from spa_recipes.units import count_of

PICKS = {"random": "drawn at random", "doubted": "that it doubts most"}
"""How the pairs of a session were chosen, in words."""


def agreements(path: Path) -> dict[str, str]:
    """How often people agree with the judge, with Wilson's 95 % interval, by how their pairs were chosen.

    Empty where there is no such file, and where nobody preferred an answer in it.
    """
    rows = rows_in(path)
    words = {}
    for pick, which in PICKS.items():
        agreed = with_judge(row for row in rows if row["origin"].get("pick") == pick)
        if agreed is not None:
            words[f"people agree with the judge on pairs {which}"] = (
                f"{agreed.share:.1%} ({agreed.low:.1%} to {agreed.high:.1%}) of {count_of(agreed.n, 'pair')}"
            )
    return words
