"""Samples K answers to every fresh prompt of an iteration, and keeps the log-prob of each sampled token."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from spa_recipes.data.chat import Renderer
from spa_recipes.data.rows import read_jsonl
from spa_recipes.errors import StageError
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
    metrics = _metrics(rows, sampling.n)
    _refuse_degenerate(rows, sampling)
    return Result(len(rows), sum(len(row["response_ids"]) for row in rows), metrics)


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


def is_empty(answer: dict[str, Any]) -> bool:
    """Whether an answer says nothing: no token but the end of the turn (and other special ones), or white space."""
    return not answer["text"].strip()


def _is_cut(answer: dict[str, Any]) -> bool:
    return bool(answer["finish_reason"] == "length")


def _identical(rows: list[dict[str, Any]], n: int) -> list[bool]:
    """For each prompt, whether its n answers are one text."""
    return [len({row["text"] for row in rows[i : i + n]}) == 1 for i in range(0, len(rows), n)]


def _metrics(rows: list[dict[str, Any]], n: int) -> dict[str, Any]:
    return {
        "mean_tokens": mean([len(row["response_ids"]) for row in rows]),
        "length_cut": share([_is_cut(row) for row in rows]),
        "empty": share([is_empty(row) for row in rows]),
        "identical": share(_identical(rows, n)),
    }


def _refuse_degenerate(rows: list[dict[str, Any]], sampling: Sampling) -> None:
    """Stop where too many answers are of no use; the shards stay, so a raised limit costs no second sampling.

    Raises:
        StageError: names the share, the limit, its key and two prompts.
    """
    answers = [row["prompt_id"] for row in rows]
    prompts = answers[:: sampling.n]
    _refuse("max_empty", sampling.max_empty, "answers are empty", answers, [is_empty(row) for row in rows])
    identical = _identical(rows, sampling.n)
    _refuse("max_identical", sampling.max_identical, "prompts got one answer every time", prompts, identical)
    _refuse("max_cut", sampling.max_cut, "answers were cut at max_tokens", answers, [_is_cut(row) for row in rows])


_REMEDIES = {
    "max_empty": "look at model.chat_template and at the training before this stage",
    "max_identical": "raise sampling.temperature",
    "max_cut": "raise sampling.max_tokens",
}


def _refuse(key: str, limit: float, what: str, prompt_ids: list[str], flags: list[bool]) -> None:
    if share(flags) <= limit:
        return
    examples = list(dict.fromkeys(prompt for prompt, flag in zip(prompt_ids, flags, strict=True) if flag))[:2]
    raise StageError(
        f"{share(flags):.1%} of the {what}, more than sampling.{key} ({limit:.1%}) allows; see "
        f"prompt{'s' if len(examples) > 1 else ''} {' and '.join(examples)}",
        fix=f"{_REMEDIES[key]}, or raise sampling.{key}",
    )
