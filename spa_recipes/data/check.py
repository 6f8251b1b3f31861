"""All that is wrong with a local dataset, found by reading it whole; of a large one, its first rows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from spa_recipes.data import sources
from spa_recipes.data.counts import placed
from spa_recipes.data.forms.answers import BY_A_PERSON, TIE
from spa_recipes.data.labelling import NO_LABEL, NOT_GOOD
from spa_recipes.data.sources import Loaded, Use
from spa_recipes.errors import DataError, SpaError
from spa_recipes.recipe.schema import DatasetSource

MOST = 20
"""Bad rows that are named."""
WHOLE_BYTES = 100_000_000
"""A larger dataset is not read whole before a run."""

_READ: dict[str, Callable[[DatasetSource], Loaded[Any]]] = {
    sources.PAIRS.name: sources.read_pairs,
    sources.PROMPTS.name: sources.read_prompts,
    sources.CONVERSATIONS.name: sources.read_conversations,
}


def faults_of(source: DatasetSource, use: Use) -> tuple[int | None, list[SpaError]]:
    """The rows of a local source, None where they were not counted; and what is wrong with it.

    That is one fault of the source as a whole, or up to `MOST` malformed rows and how many there are besides; of a
    list, that for each of its sources.
    """
    if isinstance(source.source, list):
        each = [faults_of(part, use) for part in source.parts]
        known = [rows for rows, _ in each if rows is not None]
        return sum(known) if len(known) == len(each) else None, [fault for _, faults in each for fault in faults]
    try:
        sources.look(source, use)
        if _size(Path(source.name).expanduser()) > WHOLE_BYTES:
            return None, []
        loaded = _READ[use.name](source.model_copy(update={"on_bad_row": "skip"}))
    except SpaError as error:
        return None, [error]
    harmless = (TIE, NOT_GOOD, NO_LABEL, *BY_A_PERSON.values())
    bad = [(row, why) for row, why in loaded.skipped if why not in harmless]
    if source.on_bad_row == "skip":
        bad = []
    fix = "correct the row, or set on_bad_row: skip"
    found: list[SpaError] = [DataError(why, where=f"{source.name}, row {row}", fix=fix) for row, why in bad[:MOST]]
    if len(bad) > MOST:
        found.append(DataError(f"{len(bad) - MOST:,} more rows are malformed", where=source.name, fix=fix))
    return len(loaded.stored) + len(placed(loaded.skipped)), found


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
