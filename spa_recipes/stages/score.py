"""Log-probs of completions under one model: the table that judging, refining and evaluating share."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any, overload

import pyarrow as pa
from transformers import PreTrainedModel

from spa_recipes.data.arrow import ROWS_PER_BATCH
from spa_recipes.data.tables import COMPLETIONS, LOGPS, read_table, write_token_logps, write_values
from spa_recipes.generation.scoring import Scored, sequence_logps, token_logps
from spa_recipes.models.loading import for_inference, load_causal_lm
from spa_recipes.recipe.schema import Model
from spa_recipes.stages.common import TokenPair, model_section, sharded_values, use_local_device
from spa_recipes.stages.context import NO_RESULT, Context, Result


class ScoredRows(Sequence[Scored]):
    """The completions of a table as what is scored: token ids stay in Arrow until they are asked for."""

    def __init__(self, completions: pa.Table) -> None:
        self._ids = completions.select(["prompt_ids", "response_ids"])

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, place: int) -> Scored: ...
    @overload
    def __getitem__(self, place: slice) -> list[Scored]: ...
    def __getitem__(self, place: int | slice) -> Scored | list[Scored]:
        if isinstance(place, int):
            return next(_scored(self._ids.slice(place, 1)))
        start, stop, _ = place.indices(len(self))
        return list(_scored(self._ids.slice(start, max(0, stop - start))))

    def __iter__(self) -> Iterator[Scored]:
        for batch in self._ids.to_batches(max_chunksize=ROWS_PER_BATCH):
            yield from _scored(batch)


def _scored(rows: pa.Table | pa.RecordBatch) -> Iterator[Scored]:
    return map(Scored, rows["prompt_ids"].to_pylist(), rows["response_ids"].to_pylist())


def run(context: Context) -> Result:
    """Write `logps.parquet`, a row for each completion in their order."""
    completions = read_table(context.input("completions"), COMPLETIONS)
    items = ScoredRows(completions)
    path, model = context.draft / "logps.parquet", model_section(context, "model")
    if context.spec.settings.get("by_token", False):
        tokens = score_tokens(context, "token-logps", model, items)
        if tokens is None:
            return NO_RESULT
        write_token_logps(path, completions, tokens)
    else:
        logps = score(context, "logps", model, items)
        if logps is None:
            return NO_RESULT
        write_values(path, completions, logps, LOGPS)
    return Result(len(items), sum(len(i.prompt_ids) + len(i.response_ids) for i in items), {})


def score(
    context: Context, name: str, model: Model, items: Sequence[Scored], *, every_process: bool = False
) -> list[float] | None:
    """Log-probs of `items` under `model`, shard by shard; the model is loaded only if a shard is missing.

    Returns the log-probs in the order of the items; unless `every_process`, None in every process but the first.
    """
    return score_with(context, name, partial(_load, model), items, every_process=every_process)


def score_tokens(context: Context, name: str, model: Model, items: Sequence[Scored]) -> list[list[float]] | None:
    """The log-probs of the response tokens of each item; all else as `score`."""
    compute = _in_shards(context, name, partial(_load, model), items, token_logps)
    return sharded_values(context, name, "token_logps", len(items), compute, pa.list_(pa.float64()))


def _load(model: Model) -> PreTrainedModel:
    use_local_device()
    return for_inference(load_causal_lm, model)


def score_with(
    context: Context,
    name: str,
    load: Callable[[], PreTrainedModel],
    items: Sequence[Scored],
    *,
    every_process: bool = False,
) -> list[float] | None:
    """`score` for a model that is loaded in another way."""
    compute = _in_shards(context, name, load, items, sequence_logps)
    return sharded_values(context, name, "logp", len(items), compute, every_process=every_process)


def _in_shards(
    context: Context,
    name: str,
    load: Callable[[], PreTrainedModel],
    items: Sequence[Scored],
    logps: Callable[..., list[Any]],
) -> Callable[[int, int], list[Any]]:
    """What computes the log-probs of the items of a shard; the model is loaded for the first one."""
    settings = context.spec.runtime["compute"]
    loaded = cache(load)

    def compute(start: int, end: int) -> list[Any]:
        return logps(
            loaded(),
            items[start:end],
            tokens_per_batch=settings["score_tokens_per_batch"],
            onednn_products=settings["onednn_products"],
            on_progress=lambda done, tokens: context.progress(start + done, len(items), "responses", name),
            first_item=start,
        )

    return compute


def score_pairs(
    context: Context, name: str, model: Model, pairs: Sequence[TokenPair], *, every_process: bool = False
) -> list[tuple[float, float]] | None:
    """`score` for both responses of each pair: the log-probs of the chosen and of the rejected one."""
    items = [Scored(pair["prompt_ids"], ids) for pair in pairs for ids in (pair["chosen_ids"], pair["rejected_ids"])]
    logps = score(context, name, model, items, every_process=every_process)
    return None if logps is None else list(zip(logps[::2], logps[1::2], strict=True))
