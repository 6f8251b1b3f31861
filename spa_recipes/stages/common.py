"""What several stages do the same way: their model section, renderer, shards and tables."""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from spa_recipes.data.chat import Renderer, load_tokenizer
from spa_recipes.errors import DataError, StageError
from spa_recipes.recipe.schema import Model
from spa_recipes.stages.context import Context
from spa_recipes.state import atomic
from spa_recipes.state.digests import file_digest

Compute = Callable[[int, int], pa.Table]
"""Makes the rows [start, end) of a table."""

BARRIER_POLL_SECONDS = 0.2


def model_section(context: Context, role: str) -> Model:
    """The recipe's model section with the weights that this stage was given under `role`."""
    return Model.model_validate(
        {
            **context.spec.settings["model"],
            "model_name_or_path": context.spec.inputs[role],
            "revision": context.spec.revisions.get(role),
        }
    )


def renderer_of(model: Model) -> Renderer:
    """The one rendering of prompts and responses, with the model's tokenizer and lengths."""
    tokenizer = load_tokenizer(
        model.model_name_or_path,
        revision=model.revision,
        trust_remote_code=model.trust_remote_code,
        chat_template=model.chat_template,
    )
    return Renderer(tokenizer, max_prompt_length=model.max_prompt_length, max_length=model.max_length)


def preference_row(renderer: Renderer, pair: dict[str, Any]) -> dict[str, Any]:
    """Token ids of a labelled pair, as `train_preference` takes them."""
    return {
        "prompt_ids": renderer.prompt_ids(pair["prompt"]),
        "chosen_ids": renderer.response_ids(pair["prompt"], pair["chosen"][0]["content"]),
        "rejected_ids": renderer.response_ids(pair["prompt"], pair["rejected"][0]["content"]),
    }


def use_local_device() -> None:
    """With several processes on a machine, each takes the GPU of its local rank."""
    import torch

    if "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


def write_table(path: Path, table: pa.Table) -> None:
    """Write Parquet so that the file is whole or absent."""
    with atomic.replacing(path) as temporary:
        _write_parquet(temporary, table)


def _write_parquet(path: Path, table: pa.Table) -> None:
    pq.write_table(table, path)
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def read_table(path: Path) -> list[dict[str, Any]]:
    """Rows of a Parquet file."""
    try:
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"cannot be read as Parquet ({error})", where=str(path), fix="run the stage before it again"
        ) from None
    return rows


def write_rewards(context: Context, completions: Sequence[dict[str, Any]], rewards: Sequence[float]) -> None:
    """Write `rewards.parquet`, a row for each of the completions in their order, as the judge reads it."""
    table = pa.table(
        {
            "item": pa.array([row["item"] for row in completions], pa.int64()),
            "sample": pa.array([row["sample"] for row in completions], pa.int32()),
            "reward": pa.array(rewards, pa.float64()),
        }
    )
    write_table(context.draft / "rewards.parquet", table)


class Shards:
    """A table that is made piece by piece, each committed by itself, and joined in order.

    Shards that an earlier attempt finished are used if their digests are right, and moved to `work/damaged` if not; a
    shard file's name holds its rows, so another shard size never mixes with them. Process r of n makes every n-th
    shard.
    """

    def __init__(self, context: Context, name: str, total: int, size: int, schema: pa.Schema) -> None:
        self._context, self._schema = context, schema
        self._folder = context.work / "shards" / name
        self._folder.mkdir(parents=True, exist_ok=True)
        self._ranges = [(start, min(start + size, total)) for start in range(0, total, size)]

    def missing(self) -> list[tuple[int, int]]:
        """Rows [start, end) of each shard that this process has to make."""
        mine = self._ranges[self._context.rank :: self._context.world_size]
        return [rows for rows in mine if not _is_there(self._context, self._path(rows))]

    def write(self, rows: tuple[int, int], table: pa.Table) -> None:
        """Commit a shard."""
        _write_shard(self._path(rows), table.cast(self._schema))

    def joined(self, *, every_rank: bool = False) -> pa.Table | None:
        """The whole table, once the other processes have made theirs; unless `every_rank`, process 0 gets it only."""
        rank, world_size = self._context.rank, self._context.world_size
        if rank != 0 and not every_rank:
            return None
        paths = [self._path(rows) for rows in self._ranges]
        _wait_for([path for i, path in enumerate(paths) if i % world_size != rank])
        tables = [pq.read_table(path, schema=self._schema) for path in paths]
        return pa.concat_tables(tables) if tables else self._schema.empty_table()

    def _path(self, rows: tuple[int, int]) -> Path:
        return self._folder / f"{rows[0]:08d}-{rows[1]:08d}.parquet"


def sharded(
    context: Context,
    name: str,
    total: int,
    size: int,
    schema: pa.Schema,
    compute: Compute,
    *,
    every_rank: bool = False,
) -> pa.Table | None:
    """Make a table shard by shard, one after the other, as `Shards` says."""
    shards = Shards(context, name, total, size, schema)
    for start, end in shards.missing():
        shards.write((start, end), compute(start, end))
    return shards.joined(every_rank=every_rank)


def _write_shard(path: Path, table: pa.Table) -> None:
    """Write a shard, and before it comes to its place its digest, in the form of sha256sum."""
    with atomic.replacing(path) as temporary:
        _write_parquet(temporary, table)
        atomic.write_text(_digest_of(path), f"{file_digest(temporary)}  {path.name}\n")


def _digest_of(shard: Path) -> Path:
    return shard.with_name(shard.name + ".sha256")


def _is_there(context: Context, path: Path) -> bool:
    """Whether a shard of an earlier attempt can be used; a damaged one is kept elsewhere, and said."""
    if not path.exists():
        return False
    if _is_whole(path):
        return True
    aside = atomic.move_aside(path, context.work / "damaged")
    context.notice(f"shard {path.parent.name}/{path.name} was altered or cut off: kept as {aside.name}, made again")
    return False


def _is_whole(path: Path) -> bool:
    """Whether a shard has the content that was written."""
    try:
        return _digest_of(path).read_text().split()[:1] == [file_digest(path)]
    except OSError:
        return False


def _wait_for(paths: Sequence[Path]) -> None:
    """Wait for the shards of the other processes; if one of those fails, the launcher ends this one too."""
    for path in paths:
        while not _is_whole(path):
            time.sleep(BARRIER_POLL_SECONDS)


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean; StageError for no values, so that no figure is made up."""
    if not values:
        raise StageError("no values to average")
    return sum(values) / len(values)


def share(flags: Sequence[bool]) -> float:
    """Share of True; 0 for no flags."""
    return sum(flags) / len(flags) if flags else 0.0
