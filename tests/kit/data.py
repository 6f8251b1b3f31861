"""Splits of rows that a test writes down."""

from typing import Any, NamedTuple

from spa_recipes.data import split
from spa_recipes.data.arrow import PAIRS, PROMPTS, rows_of, table_of
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
    prompt_rows = [list(rows_of(part)) for part in parts.prompts]
    return Parts(list(rows_of(parts.seed)), prompt_rows, list(rows_of(parts.heldout)), parts.dropped)
