"""AlpacaEval's annotator on a model's answers. This stage pays a service, so it does nothing else."""

from spa_recipes.benchmarks import alpaca_eval
from spa_recipes.data.raw import read_raw
from spa_recipes.recipe.schema import DatasetSource
from spa_recipes.redaction import redacted
from spa_recipes.stages.answers import instructions_file
from spa_recipes.stages.context import Context, Result
from spa_recipes.state import atomic


def run(context: Context) -> Result:
    """Write `<annotator>/annotations.json` and `<annotator>/leaderboard.csv` in the package's form."""
    outputs = [raw.value for raw in read_raw(DatasetSource(source=context.spec.inputs["outputs"]))]
    prompts = alpaca_eval.read_prompts(instructions_file(context))
    references = alpaca_eval.reference_outputs(prompts, context.spec.inputs["instructions"])
    path = alpaca_eval.annotate(
        [row for row in outputs if row is not None],
        references,
        context.spec.settings["annotator"],
        folder=context.draft,
        cache=context.work / "annotated.json",
        on_progress=lambda done, total: context.progress(done, total, "annotations"),
    )
    atomic.write_text(path, redacted(path.read_text()))  # it has the service's own words
    annotations = alpaca_eval.read_annotations(path)
    missing = sum(row["preference"] is None for row in annotations)
    return Result(len(annotations), 0, {"without_preference": missing})
