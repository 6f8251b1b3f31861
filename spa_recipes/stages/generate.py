"""Samples K answers to every fresh prompt of an iteration, and keeps the log-prob of each sampled token."""

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from spa_recipes.data.chat import Renderer
from spa_recipes.data.rows import read_jsonl
from spa_recipes.errors import StageError
from spa_recipes.generation.engines import Engine, Progress, open_engine
from spa_recipes.generation.requests import Completion, Request, request_seed
from spa_recipes.recipe.schema import Model, Sampling
from spa_recipes.stages.common import (
    Shards,
    mean,
    model_section,
    renderer_of,
    share,
    use_local_device,
    write_table,
)
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

    def __init__(self, model: Model, sampling: Sampling, renderer: Renderer, adapter: Path | None = None) -> None:
        self.renderer = renderer
        self._model, self._sampling, self._adapter = model, sampling, adapter
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
        self, requests: Sequence[Request], *, seed: int, purpose: str, progress: Progress | None = None
    ) -> list[Completion]:
        """An answer to each request; `purpose` keeps random streams apart."""
        ((_, completions),) = self.stream([requests], seed=seed, purpose=purpose, progress=progress)
        return completions

    def stream(
        self, groups: Iterable[Sequence[Request]], *, seed: int, purpose: str, progress: Progress | None = None
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Answers group by group, as `Engine.stream` gives them."""
        if self._engine is None:
            use_local_device()
            begin = time.monotonic()
            self._engine = open_engine(self._model, self._sampling, self.renderer.stop_ids, adapter=self._adapter)
            print(f"the engine was ready after {time.monotonic() - begin:.1f} s", flush=True)
        return self._engine.stream(
            groups, seed_of=lambda r: request_seed(seed, purpose, r.prompt_id, r.sample), on_progress=progress
        )

    def close(self) -> None:
        """Let go of the model, so that another one finds room."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None


def run(context: Context) -> Result:
    """Write `completions.parquet`."""
    settings = context.spec.settings
    sampling = Sampling.model_validate(settings["sampling"])
    sampler = sampler_of(context, sampling)
    prompts = read_jsonl(context.input("prompts"))
    shards = Shards(context, "completions", len(prompts), sampling.backend.shard_size, COMPLETIONS)
    _sample_missing(context, sampler, sampling.n, prompts, shards)
    sampler.close()
    table = shards.joined()
    if table is None:
        return Result(0, 0, {})
    write_table(context.draft / "completions.parquet", table)
    rows = table.to_pylist()
    metrics = _metrics(rows, sampling.n)
    _refuse_degenerate(rows, sampling)
    metrics |= _logp_differences(context, rows, sampling.check_logps)
    return Result(len(rows), sum(len(row["response_ids"]) for row in rows), metrics)


def sampler_of(context: Context, sampling: Sampling, role: str = "policy") -> Sampler:
    """A sampler for the stage's policy: its weights, or with an input `adapter` those beside which that one belongs."""
    policy = model_section(context, role)
    if "adapter" not in context.spec.inputs:
        return Sampler(policy, sampling, renderer_of(policy))
    return Sampler(model_section(context, "base"), sampling, renderer_of(policy), context.input("adapter"))


def _sample_missing(context: Context, sampler: Sampler, n: int, prompts: list[dict[str, Any]], shards: Shards) -> None:
    """Answer the prompts of the shards that are not there; the engine sees one queue, and a shard is a commit."""
    missing = shards.missing()
    if not missing:
        return
    requests = [sampler.requests(prompts[start:end], n) for start, end in missing]
    total = sum(map(len, requests))
    done_before = len(prompts) * n - total if context.world_size == 1 else 0
    for number, completions in sampler.stream(
        requests,
        seed=context.spec.settings["seed"],
        purpose=f"generate-{context.spec.settings['iteration']}",
        progress=lambda done, tokens: context.progress(done_before + done, done_before + total, "answers"),
    ):
        rows = [
            _row(missing[number][0] + i // n, request, completion, sampler.renderer)
            for i, (request, completion) in enumerate(zip(requests[number], completions, strict=True))
        ]
        shards.write(missing[number], pa.Table.from_pylist(rows, schema=COMPLETIONS))


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


def _logp_differences(context: Context, rows: list[dict[str, Any]], count: int) -> dict[str, float]:
    """How far the log-probs that the engine gave are from those of a pass of their own, in nats.

    Looked at in `count` answers, spread evenly: per token, and summed over an answer as the judge reads them.
    """
    chosen = [rows[len(rows) * i // count] for i in range(min(count, len(rows)))]
    if not chosen:
        return {}
    # Here, because labelling reads this file too, and needs no transformers.
    from spa_recipes.generation.scoring import Scored, sequence_logps
    from spa_recipes.generation.transformers import load_model

    policy = model_section(context, "policy")
    settings = context.spec.runtime["compute"]
    again = sequence_logps(
        load_model(policy.model_name_or_path, model=policy, revision=policy.revision),
        [Scored(row["prompt_ids"], row["response_ids"]) for row in chosen],
        tokens_per_batch=settings["score_tokens_per_batch"],
        onednn_products=settings["onednn_products"],
    )
    differences = [abs(sum(row["logps"]) - logp) for row, logp in zip(chosen, again, strict=True)]
    return {
        "logp_difference_per_token": sum(differences) / sum(len(row["response_ids"]) for row in chosen),
        "logp_difference_max": max(differences),
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
