"""What a session has come to, in lines for people: on the terminal and at the end of the page."""

from __future__ import annotations

from spa_recipes.label.session import Session
from spa_recipes.label.tally import Agreement, between_people, counts, with_itself, with_judge
from spa_recipes.units import count_of


def summary(session: Session) -> list[str]:
    """What the person has said of these pairs, and how far that agrees with itself, with others and with the judge."""
    rows = session.rows
    counted = counts(rows)
    said = f"{count_of(counted.labels, 'label')}, {count_of(counted.ties, 'tie')}, {count_of(counted.skips, 'skip')}"
    lines = [f"{said} in {session.file.path}"]
    if (again := with_itself(rows)) is not None:
        lines.append(f"of {count_of(again.n, 'pair')} that came twice, {_share(again)} got the same answer")
    ids = {pair.id for pair in session.source.pairs}
    people = between_people([row for row in session.file.rows if row["id"] in ids])
    for (one, other), agreed in people.items():
        names = f"{one or '(no name)'} and {other or '(no name)'}"
        lines.append(f"{names} say the same of {_share(agreed)} of {count_of(agreed.n, 'pair')}")
    return [*lines, *_of_the_judge(session)]


def _of_the_judge(session: Session) -> list[str]:
    """How often the judge is right; of the pairs that it doubts that is less than of all."""
    rows, origin = session.rows, session.source.origin
    agreed = with_judge(rows)
    if agreed is None:
        return []
    where = f"iteration {origin['iteration']} of {origin['run']}"
    pairs = count_of(agreed.n, "pair")
    if origin["pick"] == "random":
        return [f"you and the judge of {where} agree on {_interval(agreed)} of {pairs}, drawn at random from all"]
    return [
        f"you and the judge of {where} agree on {_interval(agreed)} of {pairs}, those that it doubts most of "
        f"{session.source.total:,}",
        "of its other pairs this says nothing: --pick random measures how often it is right of all",
    ]


def _share(agreed: Agreement) -> str:
    kappa = "" if agreed.kappa is None else f", kappa {agreed.kappa:.2f}"
    return f"{_interval(agreed)}{kappa}"


def _interval(agreed: Agreement) -> str:
    return f"{agreed.share:.1%} [{agreed.low:.1%}, {agreed.high:.1%}]"
