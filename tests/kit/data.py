"""Sources with few rows, and splits of rows that a test writes down."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from spa_recipes.data import split
from spa_recipes.data.arrow import PAIRS, PROMPTS, rows_of, table_of, take
from spa_recipes.data.rows import PairRow, PromptRow
from spa_recipes.errors import SpaError
from spa_recipes.recipe.schema import Data, DatasetSource
from tests.kit.data_forms import assistant, user


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


GOOD = {"prompt": "What?", "chosen": "That.", "rejected": "No."}
CONVERSATION = [user("What?"), assistant("That.")]


def source(path: Path | str, **settings: Any) -> DatasetSource:
    return DatasetSource(source=str(path), **settings)


def error_of(read: Any, path: Path | str, **settings: Any) -> SpaError:
    with pytest.raises(SpaError) as caught:
        read(source(path, **settings))
    assert "\n" not in str(caught.value)
    return caught.value


def whole(prompt: Any = None, chosen: Any = None, rejected: Any = None) -> dict[str, Any]:
    """A row of UltraFeedback's form."""
    return {
        "prompt": "What?" if prompt is None else prompt,
        "chosen": [user("What?"), assistant("That.")] if chosen is None else chosen,
        "rejected": [user("What?"), assistant("No.")] if rejected is None else rejected,
    }
