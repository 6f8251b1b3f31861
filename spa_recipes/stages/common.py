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
    settings = {k: v for k, v in context.spec.settings["model"].items() if k != "chat_template_sha256"}
    return Model.model_validate(
        {**settings, "model_name_or_path": context.spec.inputs[role], "revision": context.spec.revisions.get(role)}
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
    """Make a table shard by shard, each committed by itself, and join them in order.

    Shards that an earlier attempt finished are read back if their digests are right, and moved to `work/damaged` if
    not; a shard file's name holds its rows, so another shard size never mixes with them. Process r of n makes every
    n-th shard; unless `every_rank`, only process 0 gets the joined table, the others None.
    """
    folder = context.work / "shards" / name
    folder.mkdir(parents=True, exist_ok=True)
    ranges = [(start, min(start + size, total)) for start in range(0, total, size)]
    paths = [folder / f"{start:08d}-{end:08d}.parquet" for start, end in ranges]
    for path, (start, end) in list(zip(paths, ranges, strict=True))[context.rank :: context.world_size]:
        if not _is_there(context, path):
            _write_shard(path, compute(start, end).cast(schema))
    if context.rank != 0 and not every_rank:
        return None
    _wait_for([path for i, path in enumerate(paths) if i % context.world_size != context.rank])
    return pa.concat_tables([pq.read_table(path, schema=schema) for path in paths]) if paths else schema.empty_table()


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
