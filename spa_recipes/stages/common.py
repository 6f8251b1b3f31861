"""What several stages do the same way: model section, renderer, token ids of pairs, shards, and shares and means."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import pyarrow as pa
import pyarrow.parquet as pq

from spa_recipes.data import counts
from spa_recipes.data.chat import Renderer, load_tokenizer
from spa_recipes.data.model_files import ModelFiles
from spa_recipes.data.readable import Readable
from spa_recipes.data.rows import PairRow
from spa_recipes.data.sources import Loaded
from spa_recipes.data.tables import write_synced
from spa_recipes.errors import DataError, StageError
from spa_recipes.recipe.schema import Model
from spa_recipes.stages.context import Context
from spa_recipes.state import atomic
from spa_recipes.state.digests import file_digest
from spa_recipes.state.patience import patiently, size_of
from spa_recipes.state.reading import read_text
from spa_recipes.units import count_of

Compute = Callable[[int, int], pa.Table]
"""Makes the rows [start, end) of a table."""

BARRIER_POLL_SECONDS = 0.2
SCORED_PER_SHARD = 4096
"""Responses per shard of a pass over them."""


def model_section(context: Context, role: str) -> Model:
    """The recipe's model section with the weights of this stage's input `role`."""
    return Model.model_validate(
        {
            **context.spec.settings["model"],
            "model_name_or_path": context.spec.inputs[role],
            "revision": context.spec.revisions.get(role),
        }
    )


def renderer_of(model: Model, notice: Callable[[str], None] = print) -> Renderer:
    """The renderer of prompts and responses with the model's tokenizer and lengths."""
    tokenizer = load_tokenizer(
        model.model_name_or_path,
        revision=model.revision,
        trust_remote_code=model.trust_remote_code,
        chat_template=model.chat_template,
    )
    return Renderer(
        tokenizer,
        max_prompt_length=model.max_prompt_length,
        max_length=model.max_length,
        template_kwargs=model.chat_template_kwargs,
        notice=notice,
    )


def readable_by(model: Model, renderer: Callable[[], Renderer]) -> Readable:
    """What says whether a model can read a row; `renderer` makes its renderer where one is needed."""
    return Readable(ModelFiles(model.model_name_or_path, model.revision), renderer)


def say_read(loaded: Loaded[Any], noun: str) -> None:
    """Print what was read, and the reasons of what was not used."""
    for line in (f"{count_of(len(loaded.stored), noun)}, read as {loaded.line}", *counts.table(loaded.skipped)):
        print(line, flush=True)


class TokenPair(TypedDict):
    """Token ids of a labelled pair, as training takes them, and the log-probs of its responses under the reference."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    ref_chosen_logps: NotRequired[float]
    ref_rejected_logps: NotRequired[float]


@contextmanager
def of_row(row: Mapping[str, Any]) -> Iterator[None]:
    """Say of which row of the data the chat template, or the tokenizer, can make no tokens.

    Raises:
        DataError: names the row.
    """
    try:
        yield
    except DataError as error:
        where = f"row {row['row']} of the data" if "row" in row else f"prompt {row['prompt_id']}"
        raise DataError(error.what, where=where, fix=error.fix) from error


def token_pair(renderer: Renderer, pair: PairRow) -> TokenPair:
    """Render a labelled pair."""
    texts = [pair["chosen"][0]["content"], pair["rejected"][0]["content"]]
    with of_row(pair):
        prompt, (chosen, rejected) = renderer.render_given(pair["prompt"], texts)
    return {"prompt_ids": prompt.ids, "chosen_ids": chosen.ids, "rejected_ids": rejected.ids}


def use_local_device() -> None:
    """With several processes on a machine, each takes the GPU of its local rank."""
    import torch

    if "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


class Shards:
    """A table that is made piece by piece, each committed by itself, and joined in order.

    Shards that an earlier attempt finished are used if their digests are right, and moved to `work/damaged` if not; a
    shard file's name holds its rows, so another shard size never mixes with them. Process r of n makes every n-th
    shard.
    """

    def __init__(self, context: Context, name: str, total: int, size: int, schema: pa.Schema) -> None:
        self._context, self._schema = context, schema
        self._folder = context.work / "shards" / name
        atomic.make_folder(self._folder)
        self._ranges = [(start, min(start + size, total)) for start in range(0, total, size)]

    def missing(self) -> list[tuple[int, int]]:
        """Rows [start, end) of each shard that this process still has to make."""
        mine = self._ranges[self._context.rank :: self._context.world_size]
        return [rows for rows in mine if not _is_there(self._context, self._path(rows))]

    def write(self, rows: tuple[int, int], table: pa.Table) -> None:
        """Commit a shard."""
        _write_shard(self._path(rows), table.cast(self._schema))

    def joined(self, *, every_rank: bool = False) -> pa.Table | None:
        """The whole table, once all shards are made; without `every_rank`, only process 0 gets it."""
        rank, world_size = self._context.rank, self._context.world_size
        if rank != 0 and not every_rank:
            return None
        paths = [self._path(rows) for rows in self._ranges]
        _wait_for([path for i, path in enumerate(paths) if i % world_size != rank])
        tables = [patiently(lambda path: pq.read_table(path, schema=self._schema), path) for path in paths]
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


def sharded_values(
    context: Context,
    name: str,
    column: str,
    total: int,
    compute: Callable[[int, int], Sequence[float]],
    *,
    every_rank: bool = False,
) -> list[float] | None:
    """A number for each of `total` responses, shard by shard; `column` is its name in the shards' files.

    Unless `every_rank`, every process but the first gets None.
    """

    def table(start: int, end: int) -> pa.Table:
        return pa.table({column: pa.array(compute(start, end), pa.float64())})

    schema = pa.schema([(column, pa.float64())])
    whole = sharded(context, name, total, SCORED_PER_SHARD, schema, table, every_rank=every_rank)
    return None if whole is None else [float(value) for value in whole[column].to_pylist()]


def _write_shard(path: Path, table: pa.Table) -> None:
    """Write a shard; before it gets its name, its digest is written in the form of sha256sum."""
    with atomic.replacing(path) as temporary:
        write_synced(temporary, table)
        atomic.write_text(_digest_of(path), f"{file_digest(temporary)}  {path.name}\n")


def _digest_of(shard: Path) -> Path:
    return shard.with_name(shard.name + ".sha256")


def _is_there(context: Context, path: Path) -> bool:
    """Whether a shard of an earlier attempt can be used; a damaged one is moved away with a notice."""
    if size_of(path) is None:
        return False
    if _is_whole(path):
        return True
    aside = atomic.move_aside(path, context.work / "damaged")
    context.notice(f"shard {path.parent.name}/{path.name} was altered or cut off: kept as {aside.name}, made again")
    return False


def _is_whole(path: Path) -> bool:
    """Whether a shard has the content that was written.

    Raises:
        TryAgainError: it cannot be read.
    """
    try:
        return patiently(read_text, _digest_of(path)).split()[:1] == [file_digest(path)]
    except (OSError, ValueError):
        return False


def _wait_for(paths: Sequence[Path]) -> None:
    """Wait for the shards of the other processes; if one of those fails, the launcher ends this one too."""
    for path in paths:
        while not _is_whole(path):
            time.sleep(BARRIER_POLL_SECONDS)


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean; a StageError for no values, as no figure may be made up."""
    if not values:
        raise StageError("no values to average")
    return sum(values) / len(values)


def share(flags: Sequence[bool]) -> float:
    """Share of True; 0 for no flags."""
    return sum(flags) / len(flags) if flags else 0.0
