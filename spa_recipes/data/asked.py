"""How many rows a recipe asks for, against how many there are. Told before a run where they can be counted."""

from typing import Any

from spa_recipes.data.places import count_rows, existing_path
from spa_recipes.errors import DataError
from spa_recipes.recipe.schema import Data, DatasetSource, Source

COUNTED_BYTES = 1_000_000_000
"""Lines of a larger file are not counted before a run."""


def seed_rows(data: Data, rows: int) -> int:
    """The seed labels as a count, of so many rows of pairs.

    Raises:
        DataError: the fraction is less than one row.
    """
    if isinstance(data.seed_labels, int):
        return data.seed_labels
    count = round(data.seed_labels * rows)
    if count == 0:
        raise DataError(
            f"data.seed_labels {data.seed_labels} of {rows} rows is no row at all",
            fix="raise the fraction, or set 0 for no labels",
        )
    return count


def check_enough(data: Data, pairs: int, prompts: int | None) -> None:
    """Whether there are as many rows as the parts of a recipe ask for.

    Args:
        pairs: rows of `data.pairs`; prompts: those of `data.prompts`, None where the pairs give the prompts.

    Raises:
        DataError: there are not.
    """
    seed, fresh = seed_rows(data, pairs), sum(data.prompts_per_iteration)
    if prompts is None:
        _check_enough("data.pairs", pairs, _asked(data, seed, fresh, data.heldout))
        return
    _check_enough("data.pairs", pairs, _asked(data, seed, 0, data.heldout))
    _check_enough("data.prompts", prompts, _asked(data, 0, fresh, 0))


def check_counted(data: Data) -> None:
    """`check_enough` with the rows that can be counted without reading them; nothing where they cannot.

    Bad rows count, too, so what is refused is surely too much.

    Raises:
        DataError: there are not enough; a local source is missing.
    """
    if any(map(_is_large, (data.pairs, data.prompts))):
        return
    pairs = count_rows(data.pairs)
    prompts = None if data.prompts is None else count_rows(data.prompts)
    if pairs == 0:
        return  # who reads it says what the file is instead
    if pairs is not None and (data.prompts is None or prompts is not None):
        check_enough(data, pairs, prompts)


def _is_large(source: Source | None) -> bool:
    """Whether counting the lines of a source takes seconds."""
    paths = [existing_path(part.name) for part in source.parts] if isinstance(source, DatasetSource) else []
    return sum(path.stat().st_size for path in paths if path is not None and path.is_file()) > COUNTED_BYTES


def _asked(data: Data, seed: int, prompts: int, heldout: int) -> dict[str, tuple[int, Any]]:
    """Rows that each key asks for, and the key's value."""
    asked = {
        "data.seed_labels": (seed, data.seed_labels),
        "data.prompts_per_iteration": (prompts, data.prompts_per_iteration),
        "data.heldout": (heldout, data.heldout),
    }
    return {key: entry for key, entry in asked.items() if entry[0]}


def _check_enough(name: str, have: int, asked: dict[str, tuple[int, Any]]) -> None:
    total = sum(count for count, _ in asked.values())
    if total > have:
        parts = " + ".join(f"{key} {value}" for key, (_, value) in asked.items())
        raise DataError(
            f"{parts} ask for {total:,} rows, but {name} has {have:,}",
            fix=f"lower {' or '.join(asked)}, or give {name} more rows",
        )
