"""Dataset rows in Arrow tables."""

import random

import pyarrow as pa

from spa_recipes.data.arrow import PAIRS, PROMPTS, Rows, rows_of, table_of, take
from spa_recipes.data.rows import PairRow


def pair(row: int) -> PairRow:
    return {
        "prompt_id": f"p{row}",
        "prompt": [{"role": "system", "content": ""}, {"role": "user", "content": f"naïve 猫 \u2028 {row}"}],
        "chosen": [{"role": "assistant", "content": "yes"}],
        "rejected": [{"role": "assistant", "content": "no"}],
        "row": row,
    }


def test_rows_come_back_as_they_were_with_their_keys_in_order() -> None:
    rows = [pair(1), pair(2) | {"score_chosen": 0.1, "score_rejected": 3.0}, pair(3) | {"gold_rejected": -1e-9}]
    assert [list(row.items()) for row in rows_of(table_of(rows, PAIRS))] == [list(row.items()) for row in rows]
    assert list(rows_of(table_of([], PROMPTS))) == []


def test_take_gives_rows_of_all_chunks_in_the_order_asked_for() -> None:
    rows = [pair(number) for number in range(2500)]
    table = table_of(rows, PAIRS)
    assert len(table.to_batches()) > 1
    for wanted in (random.Random(1).sample(range(2500), 700), [2499, 0, 2499, 1000], []):
        assert list(rows_of(take(table, wanted))) == [rows[index] for index in wanted]


def test_a_column_of_many_rows_holds_no_other_column() -> None:
    long = {"chosen": [{"role": "assistant", "content": "a long answer " * 100}]}
    rows = Rows(PAIRS).extend(pair(number) | long for number in range(3000))
    before = pa.total_allocated_bytes()
    column = rows.column("row")
    assert column.to_pylist() == list(range(3000))
    assert pa.total_allocated_bytes() - before < 1_000_000  # the answers take four megabytes
