"""Two models' answers to the same prompts, side by side, in the forms that the judges read."""

from typing import Any

import pyarrow as pa

from spa_recipes.data.rows import read_jsonl, write_jsonl
from spa_recipes.errors import DataError
from spa_recipes.stages.common import write_table
from spa_recipes.stages.context import Context, Result
from spa_recipes.stages.generate import COMPLETIONS


def run(context: Context) -> Result:
    """Write `all.jsonl` (every prompt with both answers) and, of those where both say something, what judges read.

    These are `pairs.jsonl` with `completions.parquet` beside it: the model's answer is sample 0, the other's sample 1.
    """
    ours, theirs = read_jsonl(context.input("ours")), read_jsonl(context.input("theirs"))
    if [row["prompt_id"] for row in ours] != [row["prompt_id"] for row in theirs]:
        raise DataError("the two models answered different prompts", where=context.spec.id, fix="run it again")
    rows = [
        {
            "prompt_id": one["prompt_id"],
            "prompt": one["prompt"],
            "responses": [one["response"], other["response"]],
            "tokens": [one["tokens"], other["tokens"]],
        }
        for one, other in zip(ours, theirs, strict=True)
    ]
    judged = [row for row in rows if all(text.strip() for text in row["responses"])]
    if not judged:
        raise DataError("no prompt has an answer by both models", where=context.spec.id, fix="look at the answers")
    write_jsonl(context.draft / "all.jsonl", rows)
    write_jsonl(context.draft / "pairs.jsonl", judged)
    completions = [answer for item, row in enumerate(judged) for answer in _completions(item, row)]
    write_table(context.draft / "completions.parquet", pa.Table.from_pylist(completions, schema=COMPLETIONS))
    return Result(len(rows), 0, {"dropped_empty": len(rows) - len(judged)})


def _completions(item: int, row: dict[str, Any]) -> list[dict[str, Any]]:
    """Texts alone: a model that reads them has its own tokens."""
    return [
        {
            "item": item,
            "prompt_id": row["prompt_id"],
            "sample": k,
            "prompt_ids": [],
            "response_ids": [],
            "text": text,
            "logps": None,
            "finish_reason": "given",
        }
        for k, text in enumerate(row["responses"])
    ]
