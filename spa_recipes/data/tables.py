"""Parquet files that stages hand to each other: the type of a row and the schema of each file, reading and writing."""

import json
import math
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import pyarrow as pa
import pyarrow.parquet as pq

from spa_recipes.errors import DataError
from spa_recipes.state import atomic
from spa_recipes.state.patience import patiently


class CompletionRow(TypedDict):
    """`completions.parquet`: an answer to a prompt.

    Attributes:
        item: row of the prompt in the prompts file.
        sample: number of the answer among those to its prompt, from 0.
        prompt_ids, response_ids: token ids; empty where only the texts are judged.
        logps: log-probs of the response tokens at temperature 1 in nats; None where the answer was given.
        finish_reason: `stop`, `length` (cut at max_tokens) or `given`.
    """

    item: int
    prompt_id: str
    sample: int
    prompt_ids: list[int]
    response_ids: list[int]
    text: str
    logps: list[float] | None
    finish_reason: str


_ROWS_AT_ONCE = 1000
_KEY = [("item", pa.int64()), ("sample", pa.int32())]
COMPLETIONS = pa.schema(
    [
        ("item", pa.int64()),
        ("prompt_id", pa.string()),
        ("sample", pa.int32()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("response_ids", pa.list_(pa.int32())),
        ("text", pa.string()),
        ("logps", pa.list_(pa.float32())),
        ("finish_reason", pa.string()),
    ]
)
"""Columns of `CompletionRow`."""
LOGPS = pa.schema([*_KEY, ("logp", pa.float64())])
"""`logps.parquet`: the log-prob of each completion under one model, in nats, summed over its response tokens."""
TOKEN_LOGPS = pa.schema([*LOGPS, ("token_logps", pa.list_(pa.float64()))])
"""The same with the log-prob of each response token, where something reads them."""
LOG_RATIOS = pa.schema([*_KEY, ("log_ratio", pa.float64()), ("standard_error", pa.float64())])
"""`log_ratios.parquet`: log pi(y|x) - log pi_ref(y|x) of each completion in nats, and what rounding does to it."""
_CHOICE = b"spa.choice"
REWARDS = pa.schema([*_KEY, ("reward", pa.float64())])
"""`rewards.parquet`: a judge's reward of each completion."""


def write_table(path: Path, table: pa.Table) -> None:
    """Write Parquet so that the file is whole or absent."""
    with atomic.replacing(path) as temporary:
        write_synced(temporary, table)


def write_synced(path: Path, table: pa.Table) -> None:
    """Write Parquet under this very name, down to the disk."""
    pq.write_table(table, path)
    with path.open("rb") as handle:
        atomic.fsync(handle.fileno())


def read_table(path: Path, schema: pa.Schema) -> pa.Table:
    """Read the columns of a schema from a Parquet file that a stage wrote.

    Raises:
        DataError: the file is damaged, or lacks a column. TryAgainError: it cannot be read.
    """
    try:
        return patiently(lambda path: pq.read_table(path, columns=schema.names).cast(schema), path)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _damaged(path, str(error).splitlines()[0]) from None


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(
        f"cannot be read as Parquet ({reason})", where=str(path), fix="run the stage that writes this file again"
    )


def given_answer(
    item: int, prompt_id: str, sample: int, text: str, prompt_ids: Sequence[int] = (), response_ids: Sequence[int] = ()
) -> CompletionRow:
    """A row for an answer that no policy of this run sampled."""
    return {
        "item": item,
        "prompt_id": prompt_id,
        "sample": sample,
        "prompt_ids": list(prompt_ids),
        "response_ids": list(response_ids),
        "text": text,
        "logps": None,
        "finish_reason": "given",
    }


def write_completions(path: Path, rows: Iterable[CompletionRow]) -> pa.Table:
    """Write `completions.parquet` and return it; only some rows are in memory as Python objects at a time."""
    rows, batches = iter(rows), []
    while some := list(islice(rows, _ROWS_AT_ONCE)):
        batches.append(pa.RecordBatch.from_pylist(some, schema=COMPLETIONS))
    table = pa.Table.from_batches(batches, schema=COMPLETIONS)
    write_table(path, table)
    return table


def write_values(path: Path, completions: pa.Table, values: Sequence[float], schema: pa.Schema) -> None:
    """Write `logps.parquet` (LOGPS) or `rewards.parquet` (REWARDS): a value for each completion, in their order."""
    columns = [completions["item"], completions["sample"], pa.array(values, pa.float64())]
    write_table(path, pa.table(columns, schema=schema).combine_chunks())


def write_token_logps(path: Path, completions: pa.Table, logps: Sequence[Sequence[float]]) -> None:
    """Write `logps.parquet` (TOKEN_LOGPS): the log-probs of the tokens of each completion, and their sum."""
    sums = [math.fsum(tokens) for tokens in logps]
    columns = [completions["item"], completions["sample"], pa.array(sums, pa.float64())]
    columns.append(pa.array(logps, TOKEN_LOGPS.field("token_logps").type))
    write_table(path, pa.table(columns, schema=TOKEN_LOGPS).combine_chunks())


def read_token_logps(path: Path, completions: pa.Table) -> list[list[float]]:
    """Read the log-probs of tokens from `logps.parquet` (TOKEN_LOGPS).

    Raises:
        DataError: as `read_values`.
    """
    logps: list[list[float]] = _column(path, completions, TOKEN_LOGPS)
    return logps


class LogRatioTable(NamedTuple):
    """`log_ratios.parquet`: its columns, and how they were computed, as `generation.log_ratios.Choice` says it."""

    values: list[float]
    errors: list[float]
    choice: dict[str, Any]


def write_log_ratios(path: Path, completions: pa.Table, table: LogRatioTable) -> None:
    """Write `log_ratios.parquet`: a row for each completion, in their order."""
    columns = [completions["item"], completions["sample"], pa.array(table.values), pa.array(table.errors)]
    schema = LOG_RATIOS.with_metadata({_CHOICE: json.dumps(table.choice)})
    write_table(path, pa.table(columns, schema=schema).combine_chunks())


def read_log_ratios(path: Path, completions: pa.Table) -> LogRatioTable:
    """Read `log_ratios.parquet`.

    Raises:
        DataError: as `read_values`.
    """
    values, errors = (
        read_values(path, completions, pa.schema([*_KEY, LOG_RATIOS.field(name)])) for name in LOG_RATIOS.names[2:]
    )
    return LogRatioTable(values, errors, log_ratios_choice(path))


def log_ratios_choice(path: Path) -> dict[str, Any]:
    """How the log-ratios of a file were computed.

    Raises:
        DataError: the file is damaged.
    """
    try:
        choice: dict[str, Any] = json.loads(patiently(pq.read_schema, path).metadata[_CHOICE])
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise _damaged(path, str(error).splitlines()[0]) from None
    return choice


def read_values(path: Path, completions: pa.Table, schema: pa.Schema) -> list[float]:
    """Read `logps.parquet` (LOGPS) or `rewards.parquet` (REWARDS).

    Raises:
        DataError: as `read_table`, or the rows are not those of the completions.
    """
    values: list[float] = _column(path, completions, schema)
    return values


def _column(path: Path, completions: pa.Table, schema: pa.Schema) -> list[Any]:
    """The last column of a schema in a file with a row for each completion."""
    table = read_table(path, schema)
    if not all(table[name].equals(completions[name]) for name in ("item", "sample")):
        raise DataError(
            "the rows are not those of the completions",
            where=str(path),
            fix="run the stage that writes this file again",
        )
    values: list[Any] = table[schema.names[-1]].to_pylist()
    return values
