"""The first stage of `spa judge`: writes answers that a user already has as `generate` writes those it samples."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow.compute as pc

from spa_recipes.data import counts
from spa_recipes.data.chat import Renderer
from spa_recipes.data.rows import write_jsonl
from spa_recipes.data.sources import read_candidates
from spa_recipes.data.tables import CompletionRow, given_answer, write_completions
from spa_recipes.errors import DataError
from spa_recipes.recipe.schema import DatasetSource
from spa_recipes.stages.common import model_section, of_row, readable_by, renderer_of, say_read
from spa_recipes.stages.context import Context, Result


def run(context: Context) -> Result:
    """Write `prompts.jsonl` and `completions.parquet`, which has texts alone where a judge brings its own tokenizer."""
    policy = _policy(context) if "policy" in context.spec.inputs else None
    source = DatasetSource.model_validate(context.located(context.spec.settings["source"], "pairs"))
    check = readable_by(model_section(context, "policy"), lambda: policy) if policy is not None else None
    loaded = read_candidates(source, context.draft, check)
    say_read(loaded, "row")
    counts.check_skipped(loaded, source, "pairs")
    write_jsonl(context.draft / "prompts.jsonl", loaded.stored)
    if policy is not None:
        policy.removed_ends = 0  # rows that were tried come again
    given = _texts(loaded.stored) if policy is None else _answers(policy, loaded.stored)
    answers = write_completions(context.draft / "completions.parquet", given)
    metrics = {
        "form": loaded.form,
        "skipped": len(loaded.skipped),
        "skipped_why": counts.reasons(loaded.skipped),
        "removed_ends": policy.removed_ends if policy is not None else 0,
    }
    return Result(len(answers), pc.sum(pc.list_value_length(answers["response_ids"])).as_py(), metrics)


def _policy(context: Context) -> Renderer:
    """What renders the answers for the two models of the implicit reward; refuse two that split text differently."""
    policy, reference = (renderer_of(model_section(context, role), context.notice) for role in ("policy", "reference"))
    if policy.tokenizer.get_vocab() != reference.tokenizer.get_vocab():
        raise DataError(
            f"the tokenizers of {context.spec.inputs['policy']} and {context.spec.inputs['reference']} differ",
            fix="judge with a policy and the model it was trained from",
        )
    return policy


def _texts(rows: Iterable[Mapping[str, Any]]) -> Iterator[CompletionRow]:
    for item, row in enumerate(rows):
        yield from (given_answer(item, row["prompt_id"], k, text) for k, text in enumerate(row["responses"]))


def _answers(policy: Renderer, rows: Iterable[Mapping[str, Any]]) -> Iterator[CompletionRow]:
    for item, row in enumerate(rows):
        with of_row(row):
            given = policy.render_given(row["prompt"], row["responses"])
        for k, (text, answer) in enumerate(zip(row["responses"], given.answers, strict=True)):
            yield given_answer(item, row["prompt_id"], k, text, given.prompt.ids, answer.ids)
