"""Labels that came in the middle of a run: those of a user's file, behind those that were added before."""

from spa_recipes.data import counts
from spa_recipes.data.rows import PairRow, Prompt, read_rows, write_jsonl
from spa_recipes.data.sources import read_pairs
from spa_recipes.errors import DataError
from spa_recipes.recipe.schema import DatasetSource
from spa_recipes.stages.common import say_read
from spa_recipes.stages.context import Context, Result


def run(context: Context) -> Result:
    """Write `pairs.jsonl`.

    Raises:
        DataError: none of the labels is about a prompt that the other parts leave free.
    """
    source = DatasetSource.model_validate(context.located(context.spec.settings["source"], "pairs"))
    loaded = read_pairs(source, context.draft)
    say_read(loaded, "pair")
    counts.check_skipped(loaded, source, "data.added")
    taken = {
        row["prompt_id"]
        for name in context.spec.inputs
        if name.startswith("taken-")
        for row in read_rows(context.input(name), Prompt)
    }
    earlier = read_rows(context.input("earlier"), PairRow) if "earlier" in context.spec.inputs else []
    new = [row for row in loaded.rows if row["prompt_id"] not in taken]
    dropped = len(loaded.rows) - len(new)
    if not new:
        raise DataError(
            f"the prompts of all {dropped:,} labels are in a part already that these must not be in",
            where=f"data.added: {source.name}",
            fix="labels of prompts that were trained on can join the seed labels only, and held-out ones neither",
        )
    write_jsonl(context.draft / "pairs.jsonl", [*earlier, *new])
    return Result(
        rows=len(earlier) + len(new),
        tokens=0,
        metrics={"added": len(new), "dropped_rows": dropped, "skipped": len(loaded.skipped)},
    )
