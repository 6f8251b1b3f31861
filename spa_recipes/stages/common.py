"""What several stages do the same way: model section, renderer, token ids of pairs, shards, and shares and means."""

import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from spa_recipes.state.patience import look_again, patiently, size_of
from spa_recipes.state.reading import read_text
from spa_recipes.units import count_of

Rows = tuple[int, int]
"""Rows [start, end) of a table."""

Compute = Callable[[int, int], pa.Table]
"""Makes the rows [start, end) of a table."""

BARRIER_POLL_SECONDS = 0.2
SCORED_PER_SHARD, FEWEST_SCORED = 4096, 128
"""Responses per shard of a pass over them, at most and at least."""
SHARDS = 32
"""A table has at least so many shards if that leaves enough rows in each: pools of several workers share it."""


def shard_size(total: int, *, fewest: int, most: int) -> int:
    """Rows per shard. It does not depend on the workers, as batches and with them the last bits depend on shards."""
    return min(most, max(fewest, -(-total // SHARDS)))


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
    shard file's name holds its rows, so another shard size never mixes with them. Of processes that do a stage
    together, number r of n makes every n-th shard; workers of a pool take the next one that nobody has.

    Attributes:
        total: rows of the table.
        made: rows that this process has written.
    """

    def __init__(self, context: Context, name: str, total: int, size: int, schema: pa.Schema) -> None:
        self._context, self._schema, self._name = context, schema, name
        self._there = set[Rows]()
        self.total, self.made = total, 0
        self._folder = context.work / "shards" / name
        atomic.make_folder(self._folder)
        self._ranges = [(start, min(start + size, total)) for start in range(0, total, size)]

    def turns(self) -> Iterator[Iterable[Rows]]:
        """Rows [start, end) of each shard that this process still has to make, in turns that are never empty.

        In a pool, a shard is taken when it is asked for, and a turn ends when nobody has left one. Another turn comes
        if a worker is lost that had taken some. After the last turn, all shards are there.
        """
        if self._context.pool is None:
            mine = self._ranges[self._context.rank :: self._context.world_size]
            if missing := [rows for rows in mine if not self._is_there(rows)]:
                yield missing
            return
        while len(self._there) < len(self._ranges):
            turn = self._taken()
            if (first := next(turn, None)) is not None:
                yield itertools.chain([first], turn)
            else:
                look_again(self._folder)
                time.sleep(BARRIER_POLL_SECONDS)

    def missing(self) -> Iterator[Rows]:
        """`turns`, one after the other."""
        return itertools.chain.from_iterable(self.turns())

    def write(self, rows: Rows, table: pa.Table) -> None:
        """Commit a shard."""
        _write_shard(self._path(rows), table.cast(self._schema))
        self._context.gives_back(self._work(rows))
        self._there.add(rows)
        self.made += rows[1] - rows[0]

    @property
    def found(self) -> int:
        """Rows that are there and that this process did not make, as far as it has looked."""
        return sum(end - start for start, end in self._there) - self.made

    def _taken(self) -> Iterator[Rows]:
        """Take the shards that are neither there nor taken, one by one."""
        for rows in self._ranges:
            if rows in self._there or self._is_whole(rows) or not self._context.takes(self._work(rows)):
                continue
            if self._is_there(rows):  # its maker finished it since the first look
                self._context.gives_back(self._work(rows))
                continue
            yield rows

    def _is_whole(self, rows: Rows) -> bool:
        """Whether a shard is there; a damaged one is left to the worker that takes it."""
        if _is_whole(self._path(rows)):
            self._there.add(rows)
        return rows in self._there

    def _is_there(self, rows: Rows) -> bool:
        if _is_there(self._context, self._path(rows)):
            self._there.add(rows)
        return rows in self._there

    def _work(self, rows: Rows) -> str:
        return f"{self._name}/{self._path(rows).stem}"

    def joined(self) -> pa.Table | None:
        """The whole table for the process that commits, once all shards are made; None for the others."""
        return self.whole() if self._context.commits else None

    def whole(self) -> pa.Table:
        """The whole table, once all shards are made."""
        rank, world_size = self._context.rank, self._context.world_size
        paths = [self._path(rows) for rows in self._ranges]
        _wait_for([path for i, path in enumerate(paths) if i % world_size != rank])
        tables = [patiently(lambda path: pq.read_table(path, schema=self._schema), path) for path in paths]
        return pa.concat_tables(tables) if tables else self._schema.empty_table()

    def _path(self, rows: Rows) -> Path:
        return self._folder / f"{rows[0]:08d}-{rows[1]:08d}.parquet"


def sharded(
    context: Context,
    name: str,
    total: int,
    size: int,
    schema: pa.Schema,
    compute: Compute,
    *,
    every_process: bool = False,
) -> pa.Table | None:
    """Make a table shard by shard, one after the other, as `Shards` says."""
    shards = Shards(context, name, total, size, schema)
    for start, end in shards.missing():
        shards.write((start, end), compute(start, end))
    return shards.whole() if every_process else shards.joined()


def sharded_values(
    context: Context,
    name: str,
    column: str,
    total: int,
    compute: Callable[[int, int], Sequence[Any]],
    kind: pa.DataType | None = None,
    *,
    every_process: bool = False,
) -> list[Any] | None:
    """A number, or a value of another `kind`, for each of `total` responses, shard by shard.

    `column` is its name in the shards' files.

    Unless `every_process`, only the process that commits gets them, and the others None.
    """

    def table(start: int, end: int) -> pa.Table:
        return pa.table({column: pa.array(compute(start, end), of_values)})

    of_values = pa.float64() if kind is None else kind
    schema = pa.schema([(column, of_values)])
    size = shard_size(total, fewest=FEWEST_SCORED, most=SCORED_PER_SHARD)
    whole = sharded(context, name, total, size, schema, table, every_process=every_process)
    return None if whole is None else list(whole[column].to_pylist())


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
            look_again(path.parent)


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean; a StageError for no values, as no figure may be made up."""
    if not values:
        raise StageError("no values to average")
    return sum(values) / len(values)


def share(flags: Sequence[bool]) -> float:
    """Share of True; 0 for no flags."""
    return sum(flags) / len(flags) if flags else 0.0
