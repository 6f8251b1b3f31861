"""Samples K answers to every prompt of an iteration, and keeps the log-prob of each sampled token."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from spa_recipes.data.arrow import rows_of, take
from spa_recipes.data.chat import Renderer
from spa_recipes.data.rows import Prompt, read_rows
from spa_recipes.data.stage_rows import SampleRow
from spa_recipes.data.tables import COMPLETIONS, CompletionRow, write_table
from spa_recipes.errors import StageError
from spa_recipes.generation.engines import Engine, Progress, open_engine
from spa_recipes.generation.requests import Completion, Request, request_seed
from spa_recipes.models.dtype import dtype_name
from spa_recipes.recipe.schema import Model, Sampling
from spa_recipes.stages.common import (
    Rows,
    Shards,
    mean,
    model_section,
    of_row,
    renderer_of,
    shard_size,
    share,
    use_local_device,
)
from spa_recipes.stages.context import NO_RESULT, Context, Result

FEWEST_PROMPTS = 64
"""Prompts per shard at least, as an engine samples many answers at a time."""


class Sampler:
    """Samples answers with a model that is loaded when the first answer is needed."""

    def __init__(self, model: Model, sampling: Sampling, renderer: Renderer, adapter: Path | None = None) -> None:
        self.renderer = renderer
        self._model, self._sampling, self._adapter = model, sampling, adapter
        self._engine: Engine | None = None

    def requests(self, prompts: Sequence[Prompt], n: int) -> list[Request]:
        """n requests per prompt, in the order of the prompts."""
        requests = []
        for row in prompts:
            with of_row(row):
                ids = self.renderer.prompt_ids(row["prompt"])
            requests += [Request(row["prompt_id"], k, ids) for k in range(n)]
        return requests

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
        """Free the model's memory, so that another model has room."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None


def run(context: Context) -> Result:
    """Write `completions.parquet`."""
    settings = context.spec.settings
    sampling = Sampling.model_validate(settings["sampling"])
    sampler = sampler_of(context, sampling)
    prompts = read_rows(context.input("prompts"), Prompt)
    purpose = f"generate-{settings['iteration']}"
    shards = sampled(context, sampler, "completions", prompts, sampling.n, purpose)
    sampler.close()
    table = shards.joined()
    if table is None:
        return NO_RESULT
    write_table(context.draft / "completions.parquet", table)
    seen = _look_at(table, sampling.n)
    metrics = _metrics(seen)
    _refuse_degenerate(seen, sampling)
    metrics |= _logp_differences(context, table, sampling.check_logps)
    return Result(len(table), sum(seen.tokens), metrics)


def sampled(context: Context, sampler: Sampler, name: str, prompts: Sequence[Prompt], n: int, purpose: str) -> Shards:
    """Sample n answers to each prompt, shard by shard; the shards have the rows of COMPLETIONS.

    Args:
        name: of the shards.
        purpose: keeps random streams apart.
    """
    most = Sampling.model_validate(context.spec.settings["sampling"]).backend.shard_size
    size = shard_size(len(prompts), fewest=FEWEST_PROMPTS, most=most)
    shards = Shards(context, name, len(prompts), size, COMPLETIONS)

    def completions(start: int, requests: Sequence[Request], made: Sequence[Completion]) -> pa.Table:
        rows = [
            _row(start + i // n, request, completion, sampler.renderer)
            for i, (request, completion) in enumerate(zip(requests, made, strict=True))
        ]
        return pa.Table.from_pylist(rows, schema=COMPLETIONS)

    sample_shards(
        context,
        sampler,
        shards,
        lambda start, end: sampler.requests(prompts[start:end], n),
        completions,
        total=len(prompts) * n,
        purpose=purpose,
        unit="answers",
    )
    return shards


def sampler_of(context: Context, sampling: Sampling, role: str = "policy") -> Sampler:
    """A sampler for the stage's policy: its merged weights, or its base weights with the input `adapter`."""
    policy = model_section(context, role)
    if "adapter" not in context.spec.inputs:
        return Sampler(policy, sampling, renderer_of(policy))
    return Sampler(model_section(context, "base"), sampling, renderer_of(policy), context.input("adapter"))


def sample_shards(
    context: Context,
    sampler: Sampler,
    shards: Shards,
    requests: Callable[[int, int], Sequence[Request]],
    table: Callable[[int, Sequence[Request], Sequence[Completion]], pa.Table],
    *,
    total: int,
    purpose: str,
    unit: str,
) -> None:
    """Sample the shards that are missing. The engine sees one queue; each shard is committed when it is complete.

    Args:
        requests: the requests of the shard with the rows [start, end).
        table: the shard that begins at `start`, from its requests and their completions.
        total: requests of all shards.
        purpose, unit: as in `Sampler.stream` and `Context.progress`.
    """
    for turn in shards.turns():
        _sample_turn(context, sampler, shards, turn, requests, table, total, purpose, unit)


def _sample_turn(
    context: Context,
    sampler: Sampler,
    shards: Shards,
    turn: Iterable[Rows],
    requests: Callable[[int, int], Sequence[Request]],
    table: Callable[[int, Sequence[Request], Sequence[Completion]], pa.Table],
    total: int,
    purpose: str,
    unit: str,
) -> None:
    """Sample the shards of one turn, as `sample_shards` says."""
    begun: list[Rows] = []
    groups: dict[int, Sequence[Request]] = {}
    before, per_row = shards.made, total // shards.total

    def asked() -> Iterator[Sequence[Request]]:
        for number, rows in enumerate(turn):
            begun.append(rows)
            groups[number] = requests(*rows)
            yield groups[number]

    def tell(done: int, tokens: int) -> None:
        context.progress(per_row * (shards.found + before) + done, total, unit)

    seed = context.spec.settings["seed"]
    for number, completions in sampler.stream(asked(), seed=seed, purpose=purpose, progress=tell):
        shards.write(begun[number], table(begun[number][0], groups.pop(number), completions))


def _row(item: int, request: Request, completion: Completion, renderer: Renderer) -> CompletionRow:
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


def _logp_differences(context: Context, table: pa.Table, count: int) -> dict[str, float]:
    """Differences between the engine's log-probs and those of a separate pass, in nats.

    They are measured on `count` answers, spread evenly: per token, and summed over an answer as the judge reads them.
    """
    places = [len(table) * i // count for i in range(min(count, len(table)))]
    if not places:
        return {}
    chosen: list[CompletionRow] = take(table, places).to_pylist()
    # Imported here because the judge stage imports this module and needs no transformers.
    from spa_recipes.generation.scoring import Scored, sequence_logps
    from spa_recipes.models.loading import for_inference, load_causal_lm

    policy = model_section(context, "policy")
    settings = context.spec.runtime["compute"]
    model = for_inference(load_causal_lm, policy)
    again = sequence_logps(
        model,
        [Scored(row["prompt_ids"], row["response_ids"]) for row in chosen],
        tokens_per_batch=settings["score_tokens_per_batch"],
        onednn_products=settings["onednn_products"],
    )
    _refuse_other_model(model, chosen, again)
    differences = [abs(sum(row["logps"] or ()) - logp) for row, logp in zip(chosen, again, strict=True)]
    return {
        "logp_difference_per_token": sum(differences) / sum(len(row["response_ids"]) for row in chosen),
        "logp_difference_max": max(differences),
    }


def _refuse_other_model(model: Any, rows: Sequence[CompletionRow], again: Sequence[float]) -> None:
    """Stop where log-probs that were kept are not those of a pass over the whole answer.

    Raises:
        StageError: names an answer.
    """
    from spa_recipes.generation.kept import Kept, check_kept, stop_if_another_model

    kept = [
        Kept(row["prompt_id"], row["sample"], row["prompt_ids"], row["response_ids"], row["logps"] or ())
        for row in rows
    ]
    if dtype_name(model.dtype) != "float32":
        stop_if_another_model(model, kept)
        return
    for answer, logp in zip(kept, again, strict=True):
        check_kept(answer, logp)


def is_empty(text: str) -> bool:
    """Whether an answer says nothing: its text, which special tokens are no part of, is white space at most."""
    return not text.strip()


def is_cut(answer: CompletionRow | SampleRow) -> bool:
    """Whether an answer was cut at max_tokens."""
    return answer["finish_reason"] == "length"


def is_thinking(text: str) -> bool:
    """Whether an answer holds a think block; where the template opens it, the answer has its end only."""
    return "<think>" in text or "</think>" in text


class _Seen(NamedTuple):
    """What is looked at of all answers, in their order.

    Attributes:
        identical: for each prompt, whether its answers are the same text, which says nothing of a single one.
    """

    prompt_ids: list[str]
    tokens: list[int]
    cut: list[bool]
    empty: list[bool]
    thinking: list[bool]
    identical: list[bool]


def _look_at(table: pa.Table, n: int) -> _Seen:
    """Look at completions, n of each prompt; only some texts are in memory as Python objects at a time."""
    seen = _Seen(
        table["prompt_id"].to_pylist(), pc.list_value_length(table["response_ids"]).to_pylist(), [], [], [], []
    )
    rows: Iterator[Any] = rows_of(table.select(["text", "finish_reason"]))
    while answers := list(islice(rows, n)):
        texts = [answer["text"] for answer in answers]
        seen.cut.extend(map(is_cut, answers))
        seen.empty.extend(map(is_empty, texts))
        seen.thinking.extend(map(is_thinking, texts))
        seen.identical.append(n > 1 and len(set(texts)) == 1)
    return seen


def _metrics(seen: _Seen) -> dict[str, Any]:
    return {
        "mean_tokens": mean(seen.tokens),
        "length_cut": share(seen.cut),
        "empty": share(seen.empty),
        "identical": share(seen.identical),
        "thinking": share(seen.thinking),
    }


def _refuse_degenerate(seen: _Seen, sampling: Sampling) -> None:
    """Stop if too many answers are useless; the shards stay, so nothing is sampled again under a higher limit.

    Raises:
        StageError: names the share, the limit, its key and two prompts.
    """
    prompts = seen.prompt_ids[:: sampling.n]
    _refuse("max_empty", sampling.max_empty, "answers are empty", seen.prompt_ids, seen.empty)
    _refuse("max_identical", sampling.max_identical, "prompts got one answer every time", prompts, seen.identical)
    _refuse("max_cut", sampling.max_cut, "answers were cut at max_tokens", seen.prompt_ids, seen.cut)


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
