"""How labelled rows are shared out among the seed stage, the iterations and the held-out part."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

from spa_recipes.data.rows import PairRow, PromptRow
from spa_recipes.errors import DataError
from spa_recipes.recipe.schema import Data

Row = TypeVar("Row", PairRow, PromptRow)


class Split(NamedTuple):
    """The parts, and how many rows of each part's range it does not hold."""

    seed: list[PairRow]
    prompts: list[list[PromptRow]]
    heldout: list[PairRow]
    dropped: dict[str, int]


def split_rows(
    pairs: Sequence[PairRow],
    prompts: Sequence[PromptRow] | None,
    data: Data,
    *,
    skipped_pairs: Iterable[int] = (),
    skipped_prompts: Iterable[int] = (),
) -> Split:
    """Share out rows: shuffled, the first are the seed, then iteration 1, 2, ...; the last ones are held out.

    The order is that of `datasets.Dataset.shuffle(seed=data.shuffle_seed)`, so that the ranges of the authors' code
    select the same rows. Ranges count rows. A row whose prompt is held out or stands in an earlier part is dropped,
    and so is a prompt that an iteration already has; the seed and the held-out part may hold several pairs of one
    prompt. The held-out rows come from the end and are chosen first, so they are the same whatever the other parts
    are: runs with more labels or iterations are measured on the same rows. With `data.prompts`, the iterations take
    from these instead.

    Args:
        pairs: labelled pairs in the order of their source.
        prompts: prompts of `data.prompts`, or None to take those of the pairs.
        data: counts, fractions and the seed of the shuffle.
        skipped_pairs: row numbers of the source that could not be used. They keep their places in the shuffle, so one
            bad row does not move every other row to another part.
        skipped_prompts: the same for `prompts`.

    Raises:
        DataError: more rows are asked for than there are, or a part ends up empty.
    """
    pair_order = _shuffled(pairs, skipped_pairs, data.shuffle_seed)
    prompt_order: Sequence[PairRow | PromptRow | None] = pair_order
    seed_count = _seed_count(data, len(pair_order))
    fresh_count = sum(data.prompts_per_iteration)
    if prompts is None:
        _check_enough("data.pairs", len(pair_order), _asked(data, seed_count, fresh_count, data.heldout))
        prompt_start = seed_count
    else:
        prompt_order = _shuffled(prompts, skipped_prompts, data.shuffle_seed)
        _check_enough("data.pairs", len(pair_order), _asked(data, seed_count, 0, data.heldout))
        _check_enough("data.prompts", len(prompt_order), _asked(data, 0, fresh_count, 0))
        prompt_start = 0

    heldout = [row for row in pair_order[len(pair_order) - data.heldout :] if row is not None]
    _check_filled("the held-out part", "data.heldout", data.heldout, len(heldout))
    taken = {row["prompt_id"] for row in heldout}

    seed = [row for row in pair_order[:seed_count] if row is not None and row["prompt_id"] not in taken]
    dropped = {"seed": seed_count - len(seed)}
    _check_filled("the seed part", "data.seed_labels", seed_count, len(seed))
    taken |= {row["prompt_id"] for row in seed}

    iterations = []
    for number, count in enumerate(data.prompts_per_iteration, start=1):
        part = _fresh_prompts(prompt_order[prompt_start : prompt_start + count], taken)
        dropped[f"iteration {number}"] = count - len(part)
        _check_filled(f"iteration {number}", "data.prompts_per_iteration", count, len(part))
        iterations.append(part)
        prompt_start += count
    dropped["heldout"] = data.heldout - len(heldout)
    return Split(seed, iterations, heldout, dropped)


def _shuffled(rows: Sequence[Row], skipped: Iterable[int], seed: int) -> list[Row | None]:
    """Shuffle rows and the places of skipped ones (None)."""
    import numpy as np

    places: list[tuple[int, Row | None]] = [(row["row"], row) for row in rows]
    places += [(number, None) for number in skipped]
    places.sort(key=lambda place: place[0])
    return [places[index][1] for index in np.random.default_rng(seed).permutation(len(places))]


def _seed_count(data: Data, rows: int) -> int:
    if isinstance(data.seed_labels, int):
        return data.seed_labels
    count = round(data.seed_labels * rows)
    if count == 0:
        raise DataError(
            f"data.seed_labels {data.seed_labels} of {rows} rows is no row at all",
            fix="raise the fraction, or set 0 for no labels",
        )
    return count


def _fresh_prompts(rows: Sequence[PairRow | PromptRow | None], seen: set[str]) -> list[PromptRow]:
    """Prompts that are not in `seen` yet; they are added to it."""
    fresh: list[PromptRow] = []
    for row in rows:
        if row is not None and row["prompt_id"] not in seen:
            seen.add(row["prompt_id"])
            fresh.append({"prompt_id": row["prompt_id"], "prompt": row["prompt"], "row": row["row"]})
    return fresh


def _asked(data: Data, seed: int, prompts: int, heldout: int) -> dict[str, tuple[int, Any]]:
    """Rows that are asked for, and the value of the key that asks for them."""
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


def _check_filled(part: str, key: str, asked: int, got: int) -> None:
    if asked and not got:
        raise DataError(
            f"{part} is empty: none of its {asked:,} rows is usable and has a prompt that no other part has",
            fix=f"raise {key}, or give data with more distinct prompts",
        )
