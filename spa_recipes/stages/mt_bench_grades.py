"""MT-Bench's grades: a model behind an endpoint rates every turn of every answer."""

import time

import pyarrow as pa

from spa_recipes.benchmarks import mt_bench
from spa_recipes.data.rows import write_jsonl
from spa_recipes.generation.endpoint import complete
from spa_recipes.recipe.schema import Endpoint
from spa_recipes.stages.common import sharded
from spa_recipes.stages.context import Context, Result
from spa_recipes.state import atomic

JUDGMENTS = pa.schema([("judgment", pa.string()), ("tstamp", pa.float64())])
SHARD_ROWS = 20
"""Judgments per shard: an interrupted stage pays for at most so many twice."""


def run(context: Context) -> Result:
    """Write `model_judgment/<grader>_single.jsonl` in FastChat's form, and the averages as `scores.json`."""
    settings = context.spec.settings
    endpoint = Endpoint.model_validate(settings["endpoint"])
    questions = mt_bench.read_questions(context.input("questions"))
    matches = mt_bench.matches(
        questions,
        mt_bench.read_answers(context.input("answers")),
        mt_bench.read_judge_prompts(context.input("judge_prompts")),
        mt_bench.read_answers(context.input("reference_answers")) if "reference_answers" in context.spec.inputs else {},
    )

    def compute(start: int, end: int) -> pa.Table:
        texts = complete(
            endpoint,
            [match.messages for match in matches[start:end]],
            max_tokens=settings["judge_max_tokens"],
            temperature=0.0,
            on_progress=lambda done: context.progress(start + done, len(matches), "judgments"),
        )
        return pa.table({"judgment": texts, "tstamp": [time.time()] * len(texts)})

    table = sharded(context, "judgments", len(matches), SHARD_ROWS, JUDGMENTS, compute)
    assert table is not None  # there is only one process, as it waits for a server
    rows = [
        mt_bench.judgment_row(match, settings["name"], endpoint.model, made["judgment"], made["tstamp"])
        for match, made in zip(matches, table.to_pylist(), strict=True)
    ]
    averages = mt_bench.averages(rows, {question.id: question.category for question in questions})
    if averages.unrated:
        context.notice(f"no rating in {averages.unrated} of {len(rows)} judgments: no average counts these")
    grader = endpoint.model.replace("/", "_")
    write_jsonl(context.draft / "model_judgment" / f"{grader}_single.jsonl", rows)
    atomic.write_json(context.draft / "scores.json", averages._asdict())
    metrics = {
        "mt_bench_score": averages.score,
        **{f"mt_bench_turn_{turn}": value for turn, value in averages.turns.items()},
        "mt_bench_categories": averages.categories,
        "unrated": averages.unrated,
    }
    return Result(len(rows), 0, metrics)
