"""A language model compares the answers to each prompt in words: what the llm judge labels by.

All pairs of different answers are compared, each in both orders. Empty answers are not compared, as the judge stage
makes no pair of them.
"""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from spa_recipes.algo.verdicts import Comparison, Verdict, figures, parse_verdict, rewards
from spa_recipes.data.questions import load_question
from spa_recipes.data.rows import Prompt, read_rows, write_jsonl
from spa_recipes.data.stage_rows import VerdictRow
from spa_recipes.data.tables import COMPLETIONS, REWARDS, CompletionRow, read_table, write_values
from spa_recipes.errors import DataError, StageError
from spa_recipes.generation.endpoint import complete
from spa_recipes.generation.requests import Completion, Request
from spa_recipes.recipe.schema import Endpoint, LlmJudge, Sampling
from spa_recipes.stages.common import Shards, shard_size
from spa_recipes.stages.context import NO_RESULT, Context, Result
from spa_recipes.stages.generate import FEWEST_PROMPTS, is_empty, sample_shards, sampler_of

REPLIES = pa.schema([("reply", pa.string()), ("tokens", pa.int64())])
"""A row for each question that was asked, in their order; `tokens` of the reply, 0 where they are not counted."""

ENDPOINT_SHARD = 64
"""Questions per shard where each may cost money: an interrupted stage pays for at most so many twice."""


class Question(NamedTuple):
    """A question about two answers to the prompt in row `item`, by their place in it, in the order they are shown."""

    item: int
    prompt_id: str
    first: int
    second: int
    text: str


def run(context: Context) -> Result:
    """Write `rewards.parquet` (as the reward stage does) and `verdicts.jsonl` (every question, reply and verdict)."""
    judge = LlmJudge.model_validate(context.spec.settings["judge"])
    completions = read_table(context.input("completions"), COMPLETIONS)
    groups: dict[int, list[CompletionRow]] = defaultdict(list)
    for row in completions.to_pylist():
        groups[row["item"]].append(row)
    questions = _questions(context, groups)
    if "endpoint" in context.spec.settings:
        too_long: set[int] = set()
        shards = _ask_endpoint(context, judge, questions)
    else:
        too_long, shards = _ask_model(context, judge, questions)
    replies = shards.joined()
    if replies is None:
        return NO_RESULT
    asked = iter(replies["reply"].to_pylist())
    texts = [None if k in too_long else str(next(asked)) for k in range(len(questions))]
    verdicts: list[Verdict] = ["unparsed" if text is None else parse_verdict(text) for text in texts]
    write_jsonl(
        context.draft / "verdicts.jsonl",
        (_line(*line) for line in zip(questions, texts, verdicts, strict=True)),
    )
    _refuse_unparsed(context, judge, questions, verdicts, len(too_long))
    write_values(context.draft / "rewards.parquet", completions, _rewards(groups, questions, verdicts), REWARDS)
    return Result(len(completions), sum(replies["tokens"].to_pylist()), _metrics(verdicts, len(too_long)))


def _questions(context: Context, groups: dict[int, list[CompletionRow]]) -> list[Question]:
    """All questions; the two orders of a pair follow one another."""
    question = load_question(context.input("question"))
    prompts = read_rows(context.input("prompts"), Prompt)
    asked = []
    for item, answers in groups.items():
        texts: dict[str, int] = {}
        for place, answer in enumerate(answers):
            if not is_empty(answer["text"]):
                texts.setdefault(answer["text"], place)
        for pair in itertools.combinations(texts.items(), 2):
            for (first, k), (second, m) in (pair, pair[::-1]):
                text = question(prompts[item]["prompt"], first, second)
                asked.append(Question(item, prompts[item]["prompt_id"], k, m, text))
    return asked


def _ask_endpoint(context: Context, judge: LlmJudge, questions: list[Question]) -> Shards:
    endpoint = Endpoint.model_validate(context.spec.settings["endpoint"])
    shards = Shards(context, "replies", len(questions), ENDPOINT_SHARD, REPLIES)
    for start, end in shards.missing():
        some = questions[start:end]

        def tell(done: int, start: int = start) -> None:
            context.progress(start + done, len(questions), "questions")

        try:
            replies = complete(
                endpoint,
                [[{"role": "user", "content": question.text}] for question in some],
                max_tokens=judge.max_tokens,
                temperature=0.0,
                on_progress=tell,
            )
        except DataError as error:
            where = f"a question about one of the prompts {some[0].prompt_id} to {some[-1].prompt_id}"
            raise DataError(error.what, where=where, fix=error.fix) from error
        shards.write((start, end), pa.table({"reply": replies, "tokens": [0] * len(replies)}))
    return shards


def _ask_model(context: Context, judge: LlmJudge, questions: list[Question]) -> tuple[set[int], Shards]:
    """Ask a model on this machine. Also returns the indices of questions that were too long to be asked."""
    sampling = Sampling.model_validate(context.spec.settings["sampling"])
    sampler = sampler_of(context, sampling, "policy" if "policy" in context.spec.inputs else "model")
    rendered = [sampler.renderer.render_prompt([{"role": "user", "content": question.text}]) for question in questions]
    too_long = {k for k, (_, cut) in enumerate(rendered) if cut}
    _tell_too_long(context, judge, questions, too_long)
    requests = [Request(questions[k].prompt_id, k, ids) for k, (ids, cut) in enumerate(rendered) if not cut]
    size = shard_size(len(requests), fewest=FEWEST_PROMPTS, most=sampling.backend.shard_size)
    shards = Shards(context, "replies", len(requests), size, REPLIES)

    def replies(start: int, asked: Sequence[Request], completions: Sequence[Completion]) -> pa.Table:
        texts = [sampler.renderer.decode(completion.response_ids) for completion in completions]
        return pa.table({"reply": texts, "tokens": [len(completion.response_ids) for completion in completions]})

    sample_shards(
        context,
        sampler,
        shards,
        lambda start, end: requests[start:end],
        replies,
        total=len(requests),
        purpose=context.spec.id,
        unit="questions",
    )
    sampler.close()
    return too_long, shards


def _tell_too_long(context: Context, judge: LlmJudge, questions: list[Question], too_long: set[int]) -> None:
    """Report the questions that are too long. Too many of them are a StageError, before anything is asked."""
    if not too_long:
        return
    limit = context.spec.settings["model"]["max_length"]
    what = (
        f"{len(too_long)} of {len(questions)} questions do not fit judge.max_length ({limit}, of which "
        f"{judge.max_tokens} are for the verdict)"
    )
    example = f"prompt {questions[min(too_long)].prompt_id}"
    if len(too_long) > judge.max_unparsed * len(questions):
        raise StageError(
            f"{what}: more than judge.max_unparsed ({judge.max_unparsed:.1%}) allows",
            where=example,
            fix="raise judge.max_length, or lower judge.max_tokens or sampling.max_tokens",
        )
    if context.commits:
        context.notice(f"{what}: not asked, and counted as ties; see {example}")


def _refuse_unparsed(
    context: Context, judge: LlmJudge, questions: list[Question], verdicts: Sequence[Verdict], too_long: int
) -> None:
    """Stop if too many questions have no verdict; the shards stay, so nothing is asked again under a higher limit.

    Raises:
        StageError: names the share, the limit and where the replies are.
    """
    missing = [
        question.prompt_id for question, verdict in zip(questions, verdicts, strict=True) if verdict == "unparsed"
    ]
    if len(missing) <= judge.max_unparsed * len(questions):
        return
    long = f", of which {too_long} did not fit judge.max_length" if too_long else ""
    raise StageError(
        f"{len(missing)} of {len(questions)} questions are without a verdict{long}: more than judge.max_unparsed "
        f"({judge.max_unparsed:.1%}) allows; the replies are in {context.draft / 'verdicts.jsonl'}",
        where=f"prompt {missing[0]}",
        fix="change judge.prompt or the judge, or raise judge.max_unparsed",
    )


def _rewards(
    groups: dict[int, list[CompletionRow]], questions: list[Question], verdicts: Sequence[Verdict]
) -> list[float]:
    """A reward per completion, in their order; answers of one text share theirs."""
    compared: dict[int, list[Comparison]] = defaultdict(list)
    for question, verdict in zip(questions, verdicts, strict=True):
        compared[question.item].append(Comparison(question.first, question.second, verdict))
    result = []
    for item, answers in groups.items():
        by_place = rewards(len(answers), compared[item])
        first = {answer["text"]: place for place, answer in reversed(list(enumerate(answers)))}
        result += [by_place[first[answer["text"]]] for answer in answers]
    return result


def _line(question: Question, text: str | None, verdict: Verdict) -> VerdictRow:
    return {
        "item": question.item,
        "prompt_id": question.prompt_id,
        "first": question.first,
        "second": question.second,
        "reply": text,
        "verdict": verdict,
    }


def _metrics(verdicts: Sequence[Verdict], too_long: int) -> dict[str, Any]:
    metrics: dict[str, Any] = {"questions": len(verdicts), "too_long": too_long}
    if verdicts:
        found = figures(list(zip(verdicts[::2], verdicts[1::2], strict=True)))
        metrics |= {"verdict_ties": found.ties, "unparsed": found.unparsed}
        optional = {"order_disagreement": found.order_disagreement, "first_place": found.first_place}
        metrics |= {name: value for name, value in optional.items() if value is not None}
    return metrics
