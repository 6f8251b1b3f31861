"""The sandbox's base model: a tiny Llama with random weights and a word-level tokenizer."""

from spa_recipes.plan import MODEL
from spa_recipes.sandbox.model import build_model
from spa_recipes.stages.context import Context, Result


def run(context: Context) -> Result:
    """Write the model folder."""
    build_model(context.draft / MODEL, seed=context.spec.settings["seed"])
    return Result(rows=0, tokens=0, metrics={})
