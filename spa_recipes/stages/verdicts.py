"""A language model judges the answers to each prompt in words: what the llm judge labels by.

All pairs of different answers are compared, each in both orders; or each different answer is given a score alone. Empty
answers are not judged, as the judge stage makes no pair of them.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from spa_recipes.algo.scores import mean_scores, parse_score
from spa_recipes.algo.verdicts import Comparison, Verdict, figures, parse_verdict, rewards
from spa_recipes.data.questions import load_question
from spa_recipes.data.rows import Prompt, RowsInOrder, write_jsonl
from spa_recipes.data.stage_rows import ScoreRow, VerdictRow
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

_READ = pa.schema([COMPLETIONS.field(name) for name in ("item", "prompt_id", "sample", "text")])
"""What the stage needs of the completions; their tokens, as Python objects most of all, are not read."""

ENDPOINT_SHARD = 64
"""Questions per shard where each may cost money: an interrupted stage pays for at most so many twice."""


class Question(NamedTuple):
    """A question about answers to the prompt in row `item`, by their places in it, in the order they are shown.

    `sample` counts the replies where the same is asked several times.
    """

    item: int
    prompt_id: str
    shown: tuple[int, ...]
    text: str
    sample: int = 0


class _Judged(NamedTuple):
    """What the replies say.

    Attributes:
        lines: of `verdicts.jsonl`, one per question.
        unread: per question, whether its reply says nothing.
        rewards: per prompt, one of each of its answers; answers that were not judged have any.
    """

    lines: list[VerdictRow] | list[ScoreRow]
    unread: list[bool]
    rewards: Mapping[int, Sequence[float]]
    metrics: dict[str, Any]


def run(context: Context) -> Result:
    """Write `rewards.parquet` (as the reward stage does) and `verdicts.jsonl` (every question, reply and verdict)."""
    judge = LlmJudge.model_validate(context.spec.settings["judge"])
    completions = read_table(context.input("completions"), _READ)
    groups: dict[int, list[CompletionRow]] = defaultdict(list)
    for row in completions.to_pylist():
        groups[row["item"]].append(row)
    questions = list(_questions(context, judge, groups))
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
    judged = (_compared if judge.mode == "pairs" else _scored)(groups, questions, texts)
    write_jsonl(context.draft / "verdicts.jsonl", judged.lines)
    _refuse_unparsed(context, judge, questions, judged.unread, len(too_long))
    write_values(context.draft / "rewards.parquet", completions, _rewards(groups, judged.rewards), REWARDS)
    metrics = {"questions": len(questions), "too_long": len(too_long), **judged.metrics}
    return Result(len(completions), sum(replies["tokens"].to_pylist()), metrics)


def _questions(context: Context, judge: LlmJudge, groups: Mapping[int, list[CompletionRow]]) -> Iterator[Question]:
    """All questions; the two orders of a pair follow one another, and so do the replies to the same question."""
    question = load_question(context.input("question"), judge.mode)
    prompts = RowsInOrder(context.input("prompts"), Prompt)
    for item, answers in groups.items():
        texts: dict[str, int] = {}
        for place, answer in enumerate(answers):
            if not is_empty(answer["text"]):
                texts.setdefault(answer["text"], place)
        if len(texts) < 2:
            continue  # there is nothing to choose between
        together = (
            [order for pair in itertools.combinations(texts.items(), 2) for order in (pair, pair[::-1])]
            if judge.mode == "pairs"
            else [(answer,) for answer in texts.items() for _ in range(judge.samples)]
        )
        for k, shown in enumerate(together):
            text = question(prompts[item]["prompt"], *(text for text, _ in shown))
            places = tuple(place for _, place in shown)
            yield Question(item, prompts[item]["prompt_id"], places, text, k % judge.samples)


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
                temperature=0.0 if judge.samples == 1 else 1.0,
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
        context.notice(f"{what}: not asked, and without a verdict; see {example}")


def _refuse_unparsed(
    context: Context, judge: LlmJudge, questions: list[Question], unread: Sequence[bool], too_long: int
) -> None:
    """Stop if too many questions have no verdict; the shards stay, so nothing is asked again under a higher limit.

    Raises:
        StageError: names the share, the limit and where the replies are.
    """
    missing = [question.prompt_id for question, nothing in zip(questions, unread, strict=True) if nothing]
    if len(missing) <= judge.max_unparsed * len(questions):
        return
    long = f", of which {too_long} did not fit judge.max_length" if too_long else ""
    raise StageError(
        f"{len(missing)} of {len(questions)} questions are without a verdict{long}: more than judge.max_unparsed "
        f"({judge.max_unparsed:.1%}) allows; the replies are in {context.draft / 'verdicts.jsonl'}",
        where=f"prompt {missing[0]}",
        fix="change judge.prompt or the judge, or raise judge.max_unparsed",
    )


def _rewards(groups: Mapping[int, list[CompletionRow]], by_item: Mapping[int, Sequence[float]]) -> list[float]:
    """A reward per completion, in their order; answers of one text share theirs."""
    result = []
    for item, answers in groups.items():
        first = {answer["text"]: place for place, answer in reversed(list(enumerate(answers)))}
        result += [by_item[item][first[answer["text"]]] for answer in answers]
    return result


def _compared(
    groups: Mapping[int, list[CompletionRow]], questions: Sequence[Question], texts: Sequence[str | None]
) -> _Judged:
    """What replies about two answers say: verdicts, and the share of its comparisons that each answer won."""
    verdicts: list[Verdict] = ["unparsed" if text is None else parse_verdict(text) for text in texts]
    compared: dict[int, list[Comparison]] = defaultdict(list)
    lines: list[VerdictRow] = []
    for question, text, verdict in zip(questions, texts, verdicts, strict=True):
        first, second = question.shown
        compared[question.item].append(Comparison(first, second, verdict))
        lines.append(
            {
                "item": question.item,
                "prompt_id": question.prompt_id,
                "first": first,
                "second": second,
                "reply": text,
                "verdict": verdict,
            }
        )
    return _Judged(
        lines,
        [verdict == "unparsed" for verdict in verdicts],
        {item: rewards(len(answers), compared[item]) for item, answers in groups.items()},
        _metrics(verdicts),
    )


def _metrics(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    if not verdicts:
        return {}
    found = figures(list(zip(verdicts[::2], verdicts[1::2], strict=True)))
    optional = {"order_disagreement": found.order_disagreement, "first_place": found.first_place}
    return {
        "verdict_ties": found.ties,
        "unparsed": found.unparsed,
        **{name: value for name, value in optional.items() if value is not None},
    }


def _scored(
    groups: Mapping[int, list[CompletionRow]], questions: Sequence[Question], texts: Sequence[str | None]
) -> _Judged:
    """What replies about one answer say: its scores, whose mean is its reward."""
    scores = [None if text is None else parse_score(text) for text in texts]
    given: dict[int, dict[int, list[float | None]]] = {}
    lines: list[ScoreRow] = []
    for question, text, score in zip(questions, texts, scores, strict=True):
        (answer,) = question.shown
        given.setdefault(question.item, {}).setdefault(answer, []).append(score)
        lines.append(
            {
                "item": question.item,
                "prompt_id": question.prompt_id,
                "answer": answer,
                "sample": question.sample,
                "reply": text,
                "score": score,
            }
        )
    by_item = {
        item: mean_scores([given.get(item, {}).get(place, []) for place in range(len(answers))])
        for item, answers in groups.items()
    }
    unread = [score is None for score in scores]
    metrics = {"unparsed": sum(unread) / len(unread), "same_score": _equal_scores(given)} if unread else {}
    return _Judged(lines, unread, by_item, metrics)


def _equal_scores(given: Mapping[int, Mapping[int, Sequence[float | None]]]) -> float:
    """Share of the prompts whose judged answers all have one score, so that a seeded rule decides between them."""
    equal = [len(set(mean_scores(list(answers.values())))) == 1 for answers in given.values()]
    return sum(equal) / len(equal)
