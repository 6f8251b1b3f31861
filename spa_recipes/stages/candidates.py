"""Answers that a user already has, in the form that `generate` leaves: the first stage of `spa judge`."""

from typing import Any

import pyarrow as pa

from spa_recipes.data.chat import Renderer
from spa_recipes.data.rows import write_jsonl
from spa_recipes.data.sources import read_candidates
from spa_recipes.errors import DataError
from spa_recipes.recipe.schema import DatasetSource
from spa_recipes.stages.common import model_section, renderer_of, write_table
from spa_recipes.stages.context import Context, Result
from spa_recipes.stages.generate import COMPLETIONS


def run(context: Context) -> Result:
    """Write `prompts.jsonl` and `completions.parquet`; refuse two models that split text differently."""
    policy, reference = (renderer_of(model_section(context, role)) for role in ("policy", "reference"))
    if policy.tokenizer.get_vocab() != reference.tokenizer.get_vocab():
        raise DataError(
            f"the tokenizers of {context.spec.inputs['policy']} and {context.spec.inputs['reference']} differ",
            fix="judge with a policy and the model it was trained from",
        )
    source = DatasetSource.model_validate({**context.spec.settings["source"], "source": context.spec.inputs["pairs"]})
    loaded = read_candidates(source)
    print(f"{len(loaded.rows)} rows, read as {loaded.form}; skipped {len(loaded.skipped)}", flush=True)
    write_jsonl(context.draft / "prompts.jsonl", loaded.rows)
    rows = [answer for item, row in enumerate(loaded.rows) for answer in _answers(item, row, policy)]
    write_table(context.draft / "completions.parquet", pa.Table.from_pylist(rows, schema=COMPLETIONS))
    metrics = {"form": loaded.form, "skipped": len(loaded.skipped)}
    return Result(len(rows), sum(len(row["response_ids"]) for row in rows), metrics)


def _answers(item: int, row: Any, renderer: Renderer) -> list[dict[str, Any]]:
    return [
        {
            "item": item,
            "prompt_id": row["prompt_id"],
            "sample": k,
            "prompt_ids": renderer.prompt_ids(row["prompt"]),
            "response_ids": renderer.response_ids(row["prompt"], text),
            "text": text,
            "logps": None,
            "finish_reason": "given",
        }
        for k, text in enumerate(row["responses"])
    ]
