"""Single stages on made-up inputs, without a run around them."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from spa_recipes.data.rows import read_jsonl, write_jsonl
from spa_recipes.data.tables import CompletionRow, write_completions
from spa_recipes.stages import judge
from spa_recipes.stages.context import Context, StageSpec

RUNTIME: dict[str, Any] = {
    "run": "test",
    "training_processes": 1,
    "sharding": "none",
    "compute": {"cpu_threads": 1, "score_tokens_per_batch": 1000, "onednn_products": True, "stall_minutes": None},
    "storage": {"keep_shards": False, "keep_checkpoints": False, "checkpoints_while_training": 2},
    "tracking": {"report_to": []},
}


def spec_of(folder: Path, kind: str, settings: dict[str, Any], inputs: dict[str, Path]) -> StageSpec:
    (folder / "attempts" / "1").mkdir(parents=True, exist_ok=True)
    paths = {name: str(path) for name, path in inputs.items()}
    return StageSpec(f"{kind}-1", kind, "k" * 32, {}, str(folder), 1, settings, paths, {}, {}, RUNTIME)


def context_of(folder: Path, kind: str = "score", **given: Any) -> Context:
    context = Context(spec_of(folder, kind, given.get("settings", {}), given.get("inputs", {})))
    context.draft.mkdir(parents=True, exist_ok=True)
    return context


def judged(
    folder: Path,
    texts: list[list[str]],
    policy: list[list[float]],
    reference: list[list[float]],
    *,
    also: Mapping[str, list[list[float]]] = MappingProxyType({}),
    **settings: Any,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
    """Judge made-up answers; returns judgments, pairs and metrics. `also` are further tables of log-probs by name."""
    folder.mkdir(exist_ok=True)
    prompts = [
        {"prompt_id": f"p{i}", "prompt": [{"role": "user", "content": f"question {i}"}]} for i in range(len(texts))
    ]
    write_jsonl(folder / "prompts.jsonl", prompts)
    answers: list[CompletionRow] = [
        {
            "item": i,
            "prompt_id": f"p{i}",
            "sample": k,
            "prompt_ids": [1, 2],
            "response_ids": [3] * (k + 1),
            "text": text,
            "logps": [policy[i][k] - 1.0, 1.0],
            "finish_reason": "stop",
        }
        for i, group in enumerate(texts)
        for k, text in enumerate(group)
    ]
    write_completions(folder / "completions.parquet", answers)
    tables = {"reference_logps": reference, **also}
    for name, logps in tables.items():
        scores = [{"item": a["item"], "sample": a["sample"], "logp": logps[a["item"]][a["sample"]]} for a in answers]
        pq.write_table(pa.Table.from_pylist(scores), folder / f"{name}.parquet")
    context = context_of(
        folder / "stage",
        "judge",
        settings={
            "judge": {"type": "implicit_reward", "beta": 0.1},
            "seed": 1,
            "iteration": 1,
            "gold_audit": False,
            **settings,
        },
        inputs={
            "prompts": folder / "prompts.jsonl",
            "completions": folder / "completions.parquet",
            **{name: folder / f"{name}.parquet" for name in tables},
        },
    )
    result = judge.run(context)
    return read_jsonl(context.draft / "judgments.jsonl"), read_jsonl(context.draft / "pairs.jsonl"), result.metrics
