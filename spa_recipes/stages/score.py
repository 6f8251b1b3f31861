"""Log-probs of completions under one model: the table that judging, refining and evaluating share."""

import pyarrow as pa
from transformers import PreTrainedModel

from spa_recipes.generation.scoring import Scored, sequence_logps
from spa_recipes.generation.transformers import load_model
from spa_recipes.recipe.schema import Model
from spa_recipes.stages.common import model_section, read_table, sharded, use_local_device, write_table
from spa_recipes.stages.context import Context, Result

LOGPS = pa.schema([("logp", pa.float64())])
"""One row per scored response, in the order of the responses; nats, summed over response tokens."""
SHARD_ROWS = 4096


def run(context: Context) -> Result:
    """Write `logps.parquet`, aligned with the rows of the completions."""
    completions = read_table(context.input("completions"))
    items = [Scored(row["prompt_ids"], row["response_ids"]) for row in completions]
    logps = score(context, "logps", model_section(context, "model"), items)
    if logps is None:
        return Result(0, 0, {})
    table = pa.table(
        {
            "item": pa.array([row["item"] for row in completions], pa.int64()),
            "sample": pa.array([row["sample"] for row in completions], pa.int32()),
            "logp": pa.array(logps, pa.float64()),
        }
    )
    write_table(context.draft / "logps.parquet", table)
    return Result(len(items), sum(len(i.prompt_ids) + len(i.response_ids) for i in items), {})


def score(
    context: Context, name: str, model: Model, items: list[Scored], *, every_rank: bool = False
) -> list[float] | None:
    """Log-probs of `items` under `model`, shard by shard; the model is loaded only if a shard is missing.

    Returns the log-probs in the order of the items; unless `every_rank`, None in every process but the first.
    """
    loaded: list[PreTrainedModel] = []
    settings = context.spec.runtime["compute"]

    def compute(start: int, end: int) -> pa.Table:
        if not loaded:
            use_local_device()
            loaded.append(load_model(model.model_name_or_path, model=model, revision=model.revision))
        logps = sequence_logps(
            loaded[0],
            items[start:end],
            tokens_per_batch=settings["score_tokens_per_batch"],
            onednn_products=settings["onednn_products"],
            on_progress=lambda done, tokens: context.progress(start + done, len(items), "responses", name),
            first_item=start,
        )
        return pa.table({"logp": pa.array(logps, pa.float64())})

    table = sharded(context, name, len(items), SHARD_ROWS, LOGPS, compute, every_rank=every_rank)
    return None if table is None else [float(value) for value in table["logp"].to_pylist()]
