"""Samples K answers to every fresh prompt of an iteration, and keeps the log-prob of each sampled token."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from spa_recipes.data.chat import Renderer
from spa_recipes.data.rows import read_jsonl
from spa_recipes.generation.engines import Engine, open_engine
from spa_recipes.generation.requests import Completion, Request, request_seed
from spa_recipes.recipe.schema import Model, Sampling
from spa_recipes.stages.common import mean, model_section, renderer_of, sharded, share, use_local_device, write_table
from spa_recipes.stages.context import Context, Result

COMPLETIONS = pa.schema(
    [
        ("item", pa.int64()),
        ("prompt_id", pa.string()),
        ("sample", pa.int32()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("response_ids", pa.list_(pa.int32())),
        ("text", pa.string()),
        ("logps", pa.list_(pa.float32())),
        ("finish_reason", pa.string()),
    ]
)
"""A row per answer. `item` is the row of the prompt in the prompts file; `logps` are at temperature 1, or null."""


class Sampler:
    """Samples answers with a model that is loaded when the first answer is needed."""

    def __init__(self, model: Model, sampling: Sampling, renderer: Renderer) -> None:
        self.renderer = renderer
        self._model, self._sampling = model, sampling
        self._engine: Engine | None = None

    def requests(self, prompts: Sequence[dict[str, Any]], n: int) -> list[Request]:
        """n requests per prompt, in the order of the prompts."""
        return [
            Request(row["prompt_id"], k, ids)
            for row in prompts
            for ids in [self.renderer.prompt_ids(row["prompt"])]
            for k in range(n)
        ]

    def __call__(
        self, requests: Sequence[Request], *, seed: int, purpose: str, progress: Any = None
    ) -> list[Completion]:
        """An answer to each request; `purpose` keeps random streams apart."""
        if self._engine is None:
            use_local_device()
            self._engine = open_engine(self._model, self._sampling, self.renderer.stop_ids)
        return self._engine(
            requests, seed_of=lambda r: request_seed(seed, purpose, r.prompt_id, r.sample), on_progress=progress
        )

    def close(self) -> None:
        """Let go of the model, so that another one finds room."""
        self._engine = None


def run(context: Context) -> Result:
    """Write `completions.parquet`."""
    settings = context.spec.settings
    sampling = Sampling.model_validate(settings["sampling"])
    model = model_section(context, "policy")
    sampler = Sampler(model, sampling, renderer_of(model))
    prompts = read_jsonl(context.input("prompts"))

    def compute(start: int, end: int) -> pa.Table:
        context.progress(start, len(prompts), "prompts")
        requests = sampler.requests(prompts[start:end], sampling.n)
        completions = sampler(requests, seed=settings["seed"], purpose=f"generate-{settings['iteration']}")
        rows = [
            _row(start + i // sampling.n, request, completion, sampler.renderer)
            for i, (request, completion) in enumerate(zip(requests, completions, strict=True))
        ]
        context.progress(end, len(prompts), "prompts")
        return pa.Table.from_pylist(rows, schema=COMPLETIONS)

    table = sharded(context, "completions", len(prompts), sampling.backend.shard_size, COMPLETIONS, compute)
    if table is None:
        return Result(0, 0, {})
    write_table(context.draft / "completions.parquet", table)
    rows = table.to_pylist()
    return Result(len(rows), sum(len(row["response_ids"]) for row in rows), _metrics(rows, sampling.n))


def _row(item: int, request: Request, completion: Completion, renderer: Renderer) -> dict[str, Any]:
    return {
        "item": item,
        "prompt_id": completion.prompt_id,
        "sample": completion.sample,
        "prompt_ids": request.prompt_ids,
        "response_ids": completion.response_ids,
        "text": renderer.decode(completion.response_ids),
        "logps": completion.logps,
        "finish_reason": completion.finish_reason,
    }


def _metrics(rows: list[dict[str, Any]], n: int) -> dict[str, Any]:
    groups = [rows[i : i + n] for i in range(0, len(rows), n)]
    return {
        "mean_tokens": mean([len(row["response_ids"]) for row in rows]),
        "length_cut": share([row["finish_reason"] == "length" for row in rows]),
        "empty": share([not row["text"].strip() for row in rows]),
        "identical": share([all(row["text"] == group[0]["text"] for row in group) for group in groups]),
    }
