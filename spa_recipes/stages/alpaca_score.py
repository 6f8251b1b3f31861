"""AlpacaEval's rates from its annotations."""

from spa_recipes.benchmarks import alpaca_eval
from spa_recipes.stages.context import Context, Result
from spa_recipes.state import atomic


def run(context: Context) -> Result:
    """Write `scores.json`: the package's figures, in percent."""
    path = context.input("annotations")
    annotations = alpaca_eval.read_annotations(path)
    scores = alpaca_eval.score(annotations, str(path))
    if scores.missing:
        context.notice(scores.missing)
    atomic.write_json(context.draft / "scores.json", scores.figures)
    metrics = {"alpaca_win_rate": scores.figures["win_rate"] / 100}
    if "length_controlled_winrate" in scores.figures:
        metrics["alpaca_length_controlled"] = scores.figures["length_controlled_winrate"] / 100
    if "standard_error" in scores.figures:
        metrics["alpaca_standard_error"] = scores.figures["standard_error"] / 100
    return Result(int(scores.figures["n_total"]), 0, metrics)
