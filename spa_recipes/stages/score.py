"""Log-probs of completions under one model: the table that judging, refining and evaluating share."""

from collections.abc import Callable, Sequence
from functools import cache

from transformers import PreTrainedModel

from spa_recipes.data.tables import COMPLETIONS, LOGPS, read_table, write_values
from spa_recipes.generation.scoring import Scored, sequence_logps
from spa_recipes.models.loading import for_inference, load_causal_lm
from spa_recipes.recipe.schema import Model
from spa_recipes.stages.common import TokenPair, model_section, sharded_values, use_local_device
from spa_recipes.stages.context import NO_RESULT, Context, Result


def run(context: Context) -> Result:
    """Write `logps.parquet`, a row for each completion in their order."""
    completions = read_table(context.input("completions"), COMPLETIONS)
    ids = (completions[name].to_pylist() for name in ("prompt_ids", "response_ids"))
    items = [Scored(*both) for both in zip(*ids, strict=True)]
    logps = score(context, "logps", model_section(context, "model"), items)
    if logps is None:
        return NO_RESULT
    write_values(context.draft / "logps.parquet", completions, logps, LOGPS)
    return Result(len(items), sum(len(i.prompt_ids) + len(i.response_ids) for i in items), {})


def score(
    context: Context, name: str, model: Model, items: list[Scored], *, every_process: bool = False
) -> list[float] | None:
    """Log-probs of `items` under `model`, shard by shard; the model is loaded only if a shard is missing.

    Returns the log-probs in the order of the items; unless `every_process`, None in every process but the first.
    """

    def load() -> PreTrainedModel:
        use_local_device()
        return for_inference(load_causal_lm, model)

    return score_with(context, name, load, items, every_process=every_process)


def score_with(
    context: Context,
    name: str,
    load: Callable[[], PreTrainedModel],
    items: list[Scored],
    *,
    every_process: bool = False,
) -> list[float] | None:
    """`score` for a model that is loaded in another way."""
    settings = context.spec.runtime["compute"]
    loaded = cache(load)

    def compute(start: int, end: int) -> list[float]:
        return sequence_logps(
            loaded(),
            items[start:end],
            tokens_per_batch=settings["score_tokens_per_batch"],
            onednn_products=settings["onednn_products"],
            on_progress=lambda done, tokens: context.progress(start + done, len(items), "responses", name),
            first_item=start,
        )

    return sharded_values(context, name, "logp", len(items), compute, every_process=every_process)


def score_pairs(
    context: Context, name: str, model: Model, pairs: Sequence[TokenPair], *, every_process: bool = False
) -> list[tuple[float, float]] | None:
    """`score` for both responses of each pair: the log-probs of the chosen and of the rejected one."""
    items = [Scored(pair["prompt_ids"], ids) for pair in pairs for ids in (pair["chosen_ids"], pair["rejected_ids"])]
    logps = score(context, name, model, items, every_process=every_process)
    return None if logps is None else list(zip(logps[::2], logps[1::2], strict=True))
