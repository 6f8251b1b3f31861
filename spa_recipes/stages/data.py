"""The first stage of a run: reads the labelled pairs (and prompts), splits them, and writes each part as JSONL."""

from typing import Any

import pyarrow as pa

from spa_recipes.data import counts
from spa_recipes.data.arrow import PROMPTS, Rows
from spa_recipes.data.readable import Readable
from spa_recipes.data.rows import write_jsonl
from spa_recipes.data.sources import read_pairs, read_prompts
from spa_recipes.data.split import split_rows
from spa_recipes.recipe.schema import Data
from spa_recipes.stages.common import model_section, readable_by, renderer_of, say_read
from spa_recipes.stages.context import Context, Result


def run(context: Context) -> Result:
    """Write `seed.jsonl`, `prompts-1.jsonl`, ..., `heldout.jsonl`."""
    settings: dict[str, Any] = dict(context.spec.settings["data"])
    for name in ("pairs", "prompts"):
        if settings[name] is not None:
            settings[name] = context.located(settings[name], name)
    data = Data.model_validate(settings)
    check = _readable(context)
    pairs = read_pairs(data.pairs, context.draft, check)
    say_read(pairs, "pair")
    counts.check_skipped(pairs, data.pairs, "data.pairs", data.max_skipped)
    prompts = None
    if data.prompts is not None:
        prompts = read_prompts(data.prompts, context.draft, check)
        say_read(prompts, "prompt")
        counts.check_skipped(prompts, data.prompts, "data.prompts", data.max_skipped)
    parts = split_rows(
        names_of(pairs.stored),
        names_of(prompts.stored) if prompts else None,
        data,
        skipped_pairs=counts.placed(pairs.skipped),
        skipped_prompts=[row for row, _ in prompts.skipped] if prompts else [],
    )
    fresh = (prompts or pairs).stored
    near = counts.NearEqual()
    write_jsonl(context.draft / "heldout.jsonl", near.through("held out", pairs.stored.take(parts.heldout)))
    write_jsonl(context.draft / "seed.jsonl", near.through("seed", pairs.stored.take(parts.seed)))
    for i, part in enumerate(parts.prompts, start=1):
        rows = near.through(f"iteration {i}", fresh.take(part, PROMPTS.names))
        write_jsonl(context.draft / f"prompts-{i}.jsonl", rows)
    repeats = counts.repeats(pairs.stored)
    for line in (*repeats.lines, *near.lines):
        print(line, flush=True)
    metrics = {
        "form": pairs.form,
        "pairs": len(pairs.stored),
        "skipped": len(pairs.skipped),
        "skipped_why": counts.reasons(pairs.skipped),
        "skipped_prompts": len(prompts.skipped) if prompts else 0,
        "skipped_prompts_why": counts.reasons(prompts.skipped) if prompts else {},
        "repeated_pairs": len(repeats.repeated),
        "conflicting_pairs": len(repeats.conflicting),
        "most_frequent_answer": max((len({*a.chosen, *a.rejected}) for a in repeats.frequent), default=0),
        "near_equal_prompts": near.count,
        "seed": len(parts.seed),
        "prompts": [len(part) for part in parts.prompts],
        "heldout": len(parts.heldout),
        "dropped": parts.dropped,
        "dropped_rows": sum(parts.dropped.values()),
    }
    return Result(rows=len(pairs.stored), tokens=0, metrics=metrics)


def _readable(context: Context) -> Readable | None:
    """Whether the model that all later ones come from can read a row; the sandbox's reads all of its rows."""
    if "policy" not in context.spec.inputs:
        return None
    model = model_section(context, "policy")
    return readable_by(model, lambda: renderer_of(model, lambda notice: None))  # a training gives the notice


def names_of(rows: Rows) -> pa.Table:
    return pa.table({name: rows.column(name) for name in ("prompt_id", "row")})
