"""Answers of a model to a benchmark's prompts, in the benchmark's own form."""

import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

import pyarrow as pa

from spa_recipes.benchmarks import alpaca_eval, mt_bench
from spa_recipes.data.chat import Rendered
from spa_recipes.data.counts import check_skipped, reasons
from spa_recipes.data.rows import Message, prompt_id, write_jsonl
from spa_recipes.data.sources import read_prompts
from spa_recipes.data.stage_rows import AnswerRow
from spa_recipes.generation.requests import Request
from spa_recipes.recipe.schema import DatasetSource, Model, Sampling
from spa_recipes.stages.common import mean, model_section, of_row, renderer_of, say_read, shard_size, sharded, share
from spa_recipes.stages.context import NO_RESULT, Context, Result
from spa_recipes.stages.generate import FEWEST_PROMPTS, Sampler, is_empty
from spa_recipes.state import atomic

ANSWERS = pa.schema(
    [
        ("turns", pa.list_(pa.string())),
        ("tokens", pa.int64()),
        ("cut", pa.bool_()),
        ("prompt_cut", pa.bool_()),
        ("tstamp", pa.float64()),
    ]
)
"""A row per conversation: the texts of its answers, their tokens together, whether one of them (or one of its prompts)
was cut, and when it was finished, in seconds since the epoch."""


class AnsweredRow(TypedDict):
    """A row of ANSWERS."""

    turns: list[str]
    tokens: int
    cut: bool
    prompt_cut: bool
    tstamp: float


class Dialogue(NamedTuple):
    """A conversation that is answered turn by turn.

    Attributes:
        id: names its random stream.
        messages: everything before the first answer.
        more: the user's further turns.
    """

    id: str
    messages: list[Message]
    more: tuple[str, ...] = ()
    temperature: float = 0.0


def run(context: Context) -> Result:
    """Write `model_outputs.json`, `model_answer/<name>.jsonl` or `answers.jsonl`, as the benchmark has it."""
    return {"alpaca_eval": _alpaca_eval, "mt_bench": _mt_bench, "pairwise": _pairwise}[
        context.spec.settings["benchmark"]
    ](context)


def _alpaca_eval(context: Context) -> Result:
    prompts = alpaca_eval.read_prompts(instructions_file(context))
    temperature = context.spec.settings["sampling"]["temperature"]
    asked = [Dialogue(prompt_id(p.messages), p.messages, temperature=temperature) for p in prompts]
    rows = _answered(context, asked)
    if rows is None:
        return NO_RESULT
    outputs = alpaca_eval.model_outputs(prompts, [row["turns"][0] for row in rows], context.spec.settings["name"])
    atomic.write_json(context.draft / "model_outputs.json", outputs)
    return _result(rows)


def _mt_bench(context: Context) -> Result:
    questions = mt_bench.read_questions(context.input("questions"))
    # Sorted by temperature, as an engine samples at one temperature and takes long to open.
    order = sorted(range(len(questions)), key=lambda i: questions[i].temperature)
    asked = [
        Dialogue(str(q.id), [{"role": "user", "content": q.turns[0]}], q.turns[1:], q.temperature)
        for q in (questions[i] for i in order)
    ]
    rows = _answered(context, asked)
    if rows is None:
        return NO_RESULT
    name = context.spec.settings["name"]
    by_question = dict(zip(order, rows, strict=True))
    answers = [
        mt_bench.answer_row(
            question, [text.strip() for text in by_question[i]["turns"]], name, by_question[i]["tstamp"]
        )
        for i, question in enumerate(questions)
    ]
    write_jsonl(context.draft / "model_answer" / f"{name}.jsonl", answers)
    return _result(rows)


def _pairwise(context: Context) -> Result:
    settings = context.spec.settings
    source = DatasetSource.model_validate(context.located(settings["source"], "prompts"))
    # Several rows may have one prompt; it is answered, and counts, once.
    loaded = read_prompts(source, context.draft)
    say_read(loaded, "prompt")
    check_skipped(loaded, source, context.spec.keys.get("prompts", "prompts"))
    prompts = list({row["prompt_id"]: row for row in loaded.stored}.values())
    temperature = settings["sampling"]["temperature"]
    rows = _answered(context, [Dialogue(row["prompt_id"], row["prompt"], temperature=temperature) for row in prompts])
    if rows is None:
        return NO_RESULT
    answers: list[AnswerRow] = [
        {
            "prompt_id": prompt["prompt_id"],
            "prompt": prompt["prompt"],
            "response": row["turns"][0],
            "tokens": row["tokens"],
        }
        for prompt, row in zip(prompts, rows, strict=True)
    ]
    write_jsonl(context.draft / "answers.jsonl", answers)
    result = _result(rows)
    result.metrics.update(skipped=len(loaded.skipped), skipped_why=reasons(loaded.skipped))
    return result


def instructions_file(context: Context) -> Path:
    """The file with AlpacaEval's prompts: the user's, or the Hub's."""
    given = context.spec.inputs["instructions"]
    if given != alpaca_eval.HUB_DATASET:
        return Path(given)
    return alpaca_eval.hub_file(alpaca_eval.HUB_PROMPTS, context.spec.revisions.get("instructions"))


def _answered(context: Context, asked: Sequence[Dialogue]) -> list[AnsweredRow] | None:
    """Rows of ANSWERS, in the order of what was asked; None in every process but the first."""
    sampling = Sampling.model_validate(context.spec.settings["sampling"])
    samplers = _Samplers(model_section(context, "policy"), sampling)

    def compute(start: int, end: int) -> pa.Table:
        rows: list[AnsweredRow] = []
        for temperature, group in itertools.groupby(asked[start:end], key=lambda one: one.temperature):
            rows += _conversations(context, samplers.at(temperature), list(group), start + len(rows), len(asked))
        return pa.Table.from_pylist(rows, schema=ANSWERS)

    size = shard_size(len(asked), fewest=FEWEST_PROMPTS, most=sampling.backend.shard_size)
    table = sharded(context, "answers", len(asked), size, ANSWERS, compute)
    samplers.close()
    if table is None:
        return None
    answered: list[AnsweredRow] = table.to_pylist()
    return answered


class _Samplers:
    """One open sampler at a time, for one temperature."""

    def __init__(self, model: Model, sampling: Sampling) -> None:
        self._model, self._sampling, self._renderer = model, sampling, renderer_of(model)
        self._temperature: float | None = None
        self._open: Sampler | None = None

    def at(self, temperature: float) -> Sampler:
        """A sampler at this temperature; a sampler at another temperature is closed first."""
        if self._open is None or self._temperature != temperature:
            self.close()
            sampling = self._sampling.model_copy(update={"temperature": temperature})
            self._temperature, self._open = temperature, Sampler(self._model, sampling, self._renderer)
        return self._open

    def close(self) -> None:
        """Let go of the model."""
        if self._open is not None:
            self._open.close()
            self._open = None


def _conversations(
    context: Context, sampler: Sampler, asked: Sequence[Dialogue], before: int, total: int
) -> list[AnsweredRow]:
    """Every turn of some conversations, all first turns together, then all second ones."""
    messages = [list(one.messages) for one in asked]
    rows: list[AnsweredRow] = [
        {"turns": [], "tokens": 0, "cut": False, "prompt_cut": False, "tstamp": 0.0} for _ in asked
    ]
    last_turn = 1 + max(len(one.more) for one in asked)
    for turn in range(last_turn):
        active = [i for i, one in enumerate(asked) if turn <= len(one.more)]
        if turn:
            for i in active:
                messages[i] += [
                    {"role": "assistant", "content": rows[i]["turns"][-1].strip()},
                    {"role": "user", "content": asked[i].more[turn - 1]},
                ]
        prompts = [_rendered(sampler, asked[i].id, messages[i]) for i in active]
        completions = sampler(
            [Request(f"{asked[i].id}:{turn}", 0, prompt.ids) for i, prompt in zip(active, prompts, strict=True)],
            seed=context.spec.settings["seed"],
            purpose="benchmark",
            progress=lambda done, tokens, turn=turn: context.progress(  # type: ignore[misc]
                before + (done if turn == last_turn - 1 else 0), total, "conversations", f"turn {turn + 1}"
            ),
        )
        for i, prompt, completion in zip(active, prompts, completions, strict=True):
            row = rows[i]
            row["turns"].append(sampler.renderer.decode(completion.response_ids))
            row["tokens"] += len(completion.response_ids)
            row["cut"] |= completion.finish_reason == "length"
            row["prompt_cut"] |= prompt.cut
            row["tstamp"] = time.time()
    return rows


def _rendered(sampler: Sampler, name: str, messages: Sequence[Message]) -> Rendered:
    with of_row({"prompt_id": name}):
        return sampler.renderer.render_prompt(messages)


def _result(rows: list[AnsweredRow]) -> Result:
    turns = [text for row in rows for text in row["turns"]]
    tokens = sum(row["tokens"] for row in rows)
    return Result(
        len(rows),
        tokens,
        {
            "mean_tokens": tokens / len(turns),
            "mean_characters": mean([len(text) for text in turns]),
            "length_cut": share([row["cut"] for row in rows]),
            "prompts_cut": sum(row["prompt_cut"] for row in rows),
            "empty": share([is_empty(text) for text in turns]),
        },
    )
