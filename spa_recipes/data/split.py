"""Splits labelled rows into the seed, the iterations and the held-out part."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from spa_recipes.data.asked import check_enough, seed_rows
from spa_recipes.errors import DataError
from spa_recipes.recipe.schema import Data

Indices = NDArray[np.int64]
_SKIPPED = -1


class Split(NamedTuple):
    """The parts as indices of their rows, and how many rows each part dropped."""

    seed: list[int]
    prompts: list[list[int]]
    heldout: list[int]
    dropped: dict[str, int]


def split_rows(
    pairs: pa.Table,
    prompts: pa.Table | None,
    data: Data,
    *,
    skipped_pairs: Iterable[int] = (),
    skipped_prompts: Iterable[int] = (),
) -> Split:
    """Shuffle the rows and split them: first the seed, then iteration 1, 2, ...; the last rows are held out.

    The order is that of `datasets.Dataset.shuffle(seed=data.shuffle_seed)`, so that the ranges of the authors' code
    select the same rows. Ranges count rows. A row is dropped if its prompt is held out or in an earlier part,
    or if its iteration has the prompt already; the seed and the held-out part may hold several pairs of one
    prompt. The held-out rows come from the end and are chosen first, so they are the same whatever the other parts
    are: runs with more labels or iterations are measured on the same rows. With `data.prompts`, the iterations get
    their prompts from there instead.

    Args:
        pairs: labelled pairs in the order of their source, with the columns of `arrow.PAIRS`.
        prompts: prompts of `data.prompts` with the columns of `arrow.PROMPTS`; None to take those of the pairs.
        data: counts, fractions and the seed of the shuffle.
        skipped_pairs: row numbers of the source that could not be used. They keep their places in the shuffle, so one
            bad row does not move every other row to another part.
        skipped_prompts: the same for `prompts`.

    Returns:
        Indices of `pairs` for the seed and the held-out part; of `prompts` for the iterations, or of `pairs` without
        `prompts`.

    Raises:
        DataError: more rows are asked for than there are, or a part ends up empty.
    """
    pair_order = _shuffled(pairs, skipped_pairs, data.shuffle_seed)
    pair_ids, own_ids = _numbered(pairs, prompts)
    seed_count = seed_rows(data, len(pair_order))
    prompt_order = None if prompts is None else _shuffled(prompts, skipped_prompts, data.shuffle_seed)
    check_enough(data, len(pair_order), None if prompt_order is None else len(prompt_order))
    if prompt_order is None:
        prompt_order, prompt_ids, prompt_start = pair_order, pair_ids, seed_count
    else:
        prompt_ids, prompt_start = own_ids, 0

    heldout = [row for row in pair_order[len(pair_order) - data.heldout :].tolist() if row != _SKIPPED]
    _check_filled("the held-out part", "data.heldout", data.heldout, len(heldout))
    taken = set(pair_ids[heldout].tolist())

    seed = [row for row in pair_order[:seed_count].tolist() if row != _SKIPPED and int(pair_ids[row]) not in taken]
    dropped = {"seed": seed_count - len(seed)}
    _check_filled("the seed part", "data.seed_labels", seed_count, len(seed))
    taken |= set(pair_ids[seed].tolist())

    iterations = []
    for number, count in enumerate(data.prompts_per_iteration, start=1):
        part = _fresh(prompt_order[prompt_start : prompt_start + count], prompt_ids, taken)
        dropped[f"iteration {number}"] = count - len(part)
        _check_filled(f"iteration {number}", "data.prompts_per_iteration", count, len(part))
        iterations.append(part)
        prompt_start += count
    dropped["heldout"] = data.heldout - len(heldout)
    return Split(seed, iterations, heldout, dropped)


def _shuffled(table: pa.Table, skipped: Iterable[int], seed: int) -> Indices:
    """Indices of a table's rows in shuffled order, with `_SKIPPED` in the places of skipped rows."""
    numbers = np.concatenate([table["row"].to_numpy(), np.fromiter(skipped, np.int64)])
    in_source = np.argsort(numbers, kind="stable")
    shuffled: Indices = in_source[np.random.default_rng(seed).permutation(len(numbers))]
    return np.where(shuffled < len(table), shuffled, _SKIPPED)


def _numbered(pairs: pa.Table, prompts: pa.Table | None) -> tuple[Indices, Indices]:
    """A number for each prompt in place of its name, of all rows of the pairs and of the prompts."""
    names = pairs["prompt_id"] if prompts is None else pa.chunked_array(
        [*pairs["prompt_id"].chunks, *prompts["prompt_id"].chunks], pairs.schema.field("prompt_id").type
    )  # fmt: skip
    codes: Indices = pa.chunked_array(names.combine_chunks().dictionary_encode().indices).to_numpy().astype(np.int64)
    return codes[: len(pairs)], codes[len(pairs) :]


def _fresh(rows: Indices, prompt_ids: Indices, seen: set[int]) -> list[int]:
    """Rows whose prompts are not in `seen` yet; they are added to it."""
    fresh = []
    for row in rows.tolist():
        if row != _SKIPPED and (name := int(prompt_ids[row])) not in seen:
            seen.add(name)
            fresh.append(row)
    return fresh


def _check_filled(part: str, key: str, asked: int, got: int) -> None:
    if asked and not got:
        raise DataError(
            f"{part} is empty: none of its {asked:,} rows is usable and has a prompt that no other part has",
            fix=f"raise {key}, or give data with more distinct prompts",
        )
