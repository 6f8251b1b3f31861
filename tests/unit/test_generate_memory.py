"""The generate stage holds the texts of some answers at a time, and no token ids of all as Python objects."""

import tracemalloc

import numpy as np
import pyarrow as pa

from spa_recipes.data.tables import COMPLETIONS
from spa_recipes.stages.generate import _look_at, _metrics

PROMPTS, TOKENS = 4000, 200


def test_answers_to_many_prompts_are_looked_at_a_few_at_a_time() -> None:
    rows = 2 * PROMPTS
    starts, tokens = np.arange(rows + 1, dtype=np.int32) * TOKENS, np.arange(rows * TOKENS, dtype=np.int32)
    texts = ["", " ", *(f"{i} ".ljust(1000, "x") for i in range(2, rows - 2)), "<think>a", "<think>a"]
    columns = {name: pa.nulls(rows, COMPLETIONS.field(name).type) for name in COMPLETIONS.names} | {
        "prompt_id": pa.array([f"p{i // 2}" for i in range(rows)]),
        "response_ids": pa.ListArray.from_arrays(starts, tokens),
        "text": pa.array(texts),
        "finish_reason": pa.array(["length", *["stop"] * (rows - 1)]),
    }
    table = pa.table(columns, schema=COMPLETIONS)
    tracemalloc.start()
    metrics = _metrics(_look_at(table, 2))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert metrics == {
        "mean_tokens": TOKENS,
        "length_cut": 1 / rows,
        "empty": 2 / rows,
        "identical": 1 / PROMPTS,
        "thinking": 2 / rows,
    }
    assert peak < 4e6  # the texts alone are twice as many bytes
