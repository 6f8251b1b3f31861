"""The first stage of a run: reads the labelled pairs (and prompts), splits them, and writes each part as JSONL."""

from typing import Any

from spa_recipes.data.arrow import PROMPTS, rows_of, take
from spa_recipes.data.rows import write_jsonl
from spa_recipes.data.sources import read_pairs, read_prompts
from spa_recipes.data.split import split_rows
from spa_recipes.recipe.schema import Data
from spa_recipes.stages.context import Context, Result


def run(context: Context) -> Result:
    """Write `seed.jsonl`, `prompts-1.jsonl`, ..., `heldout.jsonl`."""
    settings: dict[str, Any] = dict(context.spec.settings["data"])
    for name in ("pairs", "prompts"):
        if settings[name] is not None:
            settings[name] = context.located(settings[name], name)
    data = Data.model_validate(settings)
    pairs = read_pairs(data.pairs)
    print(f"{len(pairs.table)} pairs, read as {pairs.form}; skipped {len(pairs.skipped)}", flush=True)
    prompts = read_prompts(data.prompts) if data.prompts is not None else None
    parts = split_rows(
        pairs.table,
        prompts.table if prompts else None,
        data,
        skipped_pairs=[row for row, _ in pairs.skipped],
        skipped_prompts=[row for row, _ in prompts.skipped] if prompts else [],
    )
    fresh = (prompts or pairs).table.select(PROMPTS.names)
    write_jsonl(context.draft / "seed.jsonl", rows_of(take(pairs.table, parts.seed)))
    for i, part in enumerate(parts.prompts, start=1):
        write_jsonl(context.draft / f"prompts-{i}.jsonl", rows_of(take(fresh, part)))
    write_jsonl(context.draft / "heldout.jsonl", rows_of(take(pairs.table, parts.heldout)))
    metrics = {
        "form": pairs.form,
        "pairs": len(pairs.table),
        "skipped": len(pairs.skipped),
        "skipped_prompts": len(prompts.skipped) if prompts else 0,
        "seed": len(parts.seed),
        "prompts": [len(part) for part in parts.prompts],
        "heldout": len(parts.heldout),
        "dropped": parts.dropped,
        "dropped_rows": sum(parts.dropped.values()),
    }
    return Result(rows=len(pairs.table), tokens=0, metrics=metrics)
