"""What a model gets in tasks of the package `lm-eval`, with a result per task and metric and a row per question."""

import json
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from spa_recipes.benchmarks.lm_eval import Evaluated, cannot_do, evaluator
from spa_recipes.data.chat import load_tokenizer
from spa_recipes.data.hub import is_network_error
from spa_recipes.data.rows import write_jsonl
from spa_recipes.errors import SpaError
from spa_recipes.models.loading import for_inference, load_causal_lm
from spa_recipes.models.memory import is_out_of_memory
from spa_recipes.recipe.schema import LmEval
from spa_recipes.stages.common import model_section, sharded, use_local_device
from spa_recipes.stages.context import NO_RESULT, Context, Result
from spa_recipes.state import atomic

TASKS = pa.schema([("results", pa.string()), ("samples", pa.large_string()), ("cut", pa.int64())])
"""A row per task: `Evaluated` of it, in JSON."""


def run(context: Context) -> Result:
    """Write `results.json`, by task, and `samples.jsonl`. Each task is a shard of its own."""
    benchmark = LmEval.model_validate(context.spec.settings["benchmark"])
    loaded = cache(lambda: _loaded(context, benchmark))

    def compute(start: int, end: int) -> pa.Table:
        rows = []
        for place in range(start, end):
            evaluate, passes = loaded()
            passes.clear()
            passes.update(done=0, place=place)
            results, samples, cut = _evaluated(evaluate, benchmark.tasks[place])
            rows.append({"results": json.dumps(results), "samples": json.dumps(samples), "cut": cut})
            context.progress(place + 1, len(benchmark.tasks), "tasks")
        return pa.Table.from_pylist(rows, schema=TASKS)

    table = sharded(context, "tasks", len(benchmark.tasks), 1, TASKS, compute)
    if table is None:
        return NO_RESULT
    results: dict[str, Any] = {}
    for text in table["results"].to_pylist():
        for name, result in json.loads(text).items():
            # A task may be asked for by itself and be part of a group: then it is shown.
            results[name] = {**result, "shown": result["shown"] or results.get(name, result)["shown"]}
    samples = {
        (row["task"], row["doc_id"], row["filter"]): row
        for text in table["samples"].to_pylist()
        for row in json.loads(text)
    }
    atomic.write_json(context.draft / "results.json", results)
    write_jsonl(context.draft / "samples.jsonl", samples.values())
    docs = sum(result["docs"] for result in results.values())
    return Result(docs, 0, {"tasks": len(benchmark.tasks), "requests_cut": sum(table["cut"].to_pylist())})


def _evaluated(evaluate: Callable[[str], Evaluated], task: str) -> Evaluated:
    """`evaluate`, with one line about a task that the package cannot do, unless memory, disk or network failed."""
    try:
        return evaluate(task)
    except SpaError:
        raise
    except Exception as error:  # the package, and the code of a task, raise errors of any kind
        of_system = isinstance(error, OSError) and error.errno is not None
        if of_system or is_out_of_memory(error) or is_network_error(error):
            raise
        traceback.print_exc()
        raise cannot_do(task, error) from error


def _loaded(context: Context, benchmark: LmEval) -> tuple[Callable[[str], Evaluated], dict[str, int]]:
    """What evaluates the model in a task, and the count of its passes, by which progress is told."""
    section = model_section(context, "policy")
    tokenizer = load_tokenizer(
        section.model_name_or_path,
        revision=section.revision,
        trust_remote_code=section.trust_remote_code,
        chat_template=section.chat_template,
    )
    use_local_device()
    model = for_inference(load_causal_lm, section)
    passes: dict[str, int] = {}

    def tell(*_: Any) -> None:
        passes["done"] += 1
        place = passes["place"]
        note = f"{benchmark.tasks[place]}: pass {passes['done']}"
        context.progress(place, len(benchmark.tasks), "tasks", note)

    model.register_forward_pre_hook(tell)
    folder = context.spec.inputs.get("tasks")
    evaluate = evaluator(
        model,
        tokenizer,
        benchmark,
        max_length=section.max_length,
        template_kwargs=section.chat_template_kwargs,
        folder=None if folder is None else Path(folder),
    )
    return evaluate, passes
