"""The first stage of `spa sample`: reads a user's prompts, each of which is answered once."""

from spa_recipes.data import counts
from spa_recipes.data.rows import write_jsonl
from spa_recipes.data.sources import read_prompts
from spa_recipes.recipe.schema import DatasetSource
from spa_recipes.stages.common import model_section, readable_by, renderer_of, say_read
from spa_recipes.stages.context import Context, Result


def run(context: Context) -> Result:
    """Write `prompts.jsonl`: the distinct prompts in the order of the source."""
    source = DatasetSource.model_validate(context.located(context.spec.settings["source"], "prompts"))
    model = model_section(context, "policy")
    check = readable_by(model, lambda: renderer_of(model, lambda notice: None))  # the sampling gives the notice
    loaded = read_prompts(source, context.draft, check)
    say_read(loaded, "prompt")
    counts.check_skipped(loaded, source, "prompts")
    distinct = {row["prompt_id"]: row for row in reversed(list(loaded.stored))}
    rows = sorted(distinct.values(), key=lambda row: int(row["row"]))
    repeated = len(loaded.stored) - len(rows)
    if repeated:
        context.notice(f"{repeated:,} rows repeat a prompt of another one: each prompt is answered once")
    write_jsonl(context.draft / "prompts.jsonl", rows)
    metrics = {
        "form": loaded.form,
        "skipped": len(loaded.skipped),
        "skipped_why": counts.reasons(loaded.skipped),
        "repeated_prompts": repeated,
    }
    return Result(len(rows), 0, metrics)
