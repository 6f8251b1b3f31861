"""Two models' answers to the same prompts, side by side, in the forms that the judges read."""

from spa_recipes.data.rows import read_rows, write_jsonl
from spa_recipes.data.stage_rows import AnswerRow, TwoAnswersRow
from spa_recipes.data.tables import given_answer, write_completions
from spa_recipes.errors import DataError
from spa_recipes.stages.context import Context, Result
from spa_recipes.stages.generate import is_empty


def run(context: Context) -> Result:
    """Write `all.jsonl` (every prompt with both answers) and, of those where both say something, what judges read.

    These are `pairs.jsonl` with `completions.parquet` beside it: the model's answer is sample 0, the other's sample 1.
    """
    ours, theirs = (read_rows(context.input(side), AnswerRow) for side in ("ours", "theirs"))
    if [row["prompt_id"] for row in ours] != [row["prompt_id"] for row in theirs]:
        raise DataError("the two models answered different prompts", where=context.spec.id, fix="run it again")
    rows: list[TwoAnswersRow] = [
        {
            "prompt_id": one["prompt_id"],
            "prompt": one["prompt"],
            "responses": [one["response"], other["response"]],
            "tokens": [one["tokens"], other["tokens"]],
        }
        for one, other in zip(ours, theirs, strict=True)
    ]
    judged = [row for row in rows if not any(map(is_empty, row["responses"]))]
    if not judged:
        raise DataError("no prompt has an answer by both models", where=context.spec.id, fix="look at the answers")
    write_jsonl(context.draft / "all.jsonl", rows)
    write_jsonl(context.draft / "pairs.jsonl", judged)
    # Texts alone: a model that reads them has its own tokens.
    completions = [
        given_answer(item, row["prompt_id"], k, text)
        for item, row in enumerate(judged)
        for k, text in enumerate(row["responses"])
    ]
    write_completions(context.draft / "completions.parquet", completions)
    return Result(len(rows), 0, {"dropped_empty": len(rows) - len(judged)})
