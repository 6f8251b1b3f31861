"""Splits of rows that a test writes down."""

from typing import Any, NamedTuple

from spa_recipes.data import split
from spa_recipes.data.arrow import PAIRS, PROMPTS, rows_of, table_of, take
from spa_recipes.data.rows import PairRow, PromptRow
from spa_recipes.recipe.schema import Data


class Parts(NamedTuple):
    """A split with rows in place of tables."""

    seed: list[dict[str, Any]]
    prompts: list[list[dict[str, Any]]]
    heldout: list[dict[str, Any]]
    dropped: dict[str, int]


def split_rows(pairs: list[PairRow], prompts: list[PromptRow] | None, data: Data, **skipped: Any) -> Parts:
    tables = table_of(pairs, PAIRS), None if prompts is None else table_of(prompts, PROMPTS)
    parts = split.split_rows(*tables, data, **skipped)
    fresh = (tables[1] or tables[0]).select(PROMPTS.names)
    prompt_rows = [list(rows_of(take(fresh, part))) for part in parts.prompts]
    seed, heldout = (list(rows_of(take(tables[0], part))) for part in (parts.seed, parts.heldout))
    return Parts(seed, prompt_rows, heldout, parts.dropped)
