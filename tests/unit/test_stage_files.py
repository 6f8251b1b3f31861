"""Files that stages hand to each other: a file that does not fit is one clear line."""

from pathlib import Path

import pyarrow as pa
import pytest

from spa_recipes.data.rows import PairRow, read_rows, write_jsonl
from spa_recipes.data.stage_rows import SampleRow, VerdictRow
from spa_recipes.data.tables import (
    COMPLETIONS,
    LOGPS,
    REWARDS,
    given_answer,
    read_table,
    read_values,
    write_completions,
    write_table,
    write_values,
)
from spa_recipes.errors import DataError


def completions(folder: Path, samples: int = 2) -> pa.Table:
    path = folder / "completions.parquet"
    write_completions(path, [given_answer(0, "p0", k, f"answer {k}", [1], [2, 3]) for k in range(samples)])
    return read_table(path, COMPLETIONS)


def test_a_row_without_a_key_of_its_type_names_the_line_and_the_key(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    row: VerdictRow = {
        "item": 0, "prompt_id": "p0", "first": 0, "second": 1, "reply": None, "verdict": "unparsed"
    }  # fmt: skip
    write_jsonl(path, [row, {key: value for key, value in row.items() if key != "reply"}])
    with pytest.raises(
        DataError, match=r"verdicts\.jsonl:2: no key `reply`; run the stage that writes this file again"
    ):
        read_rows(path, VerdictRow)


def test_optional_keys_may_be_missing_and_inherited_ones_may_not(tmp_path: Path) -> None:
    pair: PairRow = {"prompt_id": "p0", "prompt": [], "chosen": [], "rejected": [], "row": 1}
    write_jsonl(tmp_path / "seed.jsonl", [pair])
    assert read_rows(tmp_path / "seed.jsonl", PairRow) == [pair]
    with pytest.raises(DataError, match="no key `finish_reason`"):
        read_rows(tmp_path / "seed.jsonl", SampleRow)


def test_values_come_back_in_the_order_of_the_completions(tmp_path: Path) -> None:
    table = completions(tmp_path)
    write_values(tmp_path / "logps.parquet", table, [-1.5, -2.0], LOGPS)
    assert read_values(tmp_path / "logps.parquet", table, LOGPS) == [-1.5, -2.0]
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read_values(tmp_path / "logps.parquet", table, REWARDS)


def test_values_of_other_completions_are_refused(tmp_path: Path) -> None:
    write_values(tmp_path / "rewards.parquet", completions(tmp_path, 2), [0.5, 0.25], REWARDS)
    with pytest.raises(DataError, match="the rows are not those of the completions"):
        read_values(tmp_path / "rewards.parquet", completions(tmp_path, 3), REWARDS)


def test_a_table_that_is_no_parquet_or_lacks_a_column_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really")
    write_table(tmp_path / "b.parquet", pa.table({"item": [1]}))
    for name in ("a.parquet", "b.parquet", "missing.parquet"):
        with pytest.raises(DataError, match=name):
            read_table(tmp_path / name, COMPLETIONS)
