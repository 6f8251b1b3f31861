"""Recipe -> plan: the stages of a run, in order, each with its inputs and its key."""

from spa_recipes.plan.benchmarks import ALPACA_EVAL_PROMPTS, is_of_benchmark
from spa_recipes.plan.gates import gates
from spa_recipes.plan.kinds import ADAPTER, KINDS, MODEL, Content, Kind
from spa_recipes.plan.recipe import compile_plan
from spa_recipes.plan.stages import CARD, RECIPE_FILE, External, Input, Plan, Stage, StageOutput

__all__ = [
    "ADAPTER",
    "ALPACA_EVAL_PROMPTS",
    "CARD",
    "KINDS",
    "MODEL",
    "RECIPE_FILE",
    "Content",
    "External",
    "Input",
    "Kind",
    "Plan",
    "Stage",
    "StageOutput",
    "compile_plan",
    "gates",
    "is_of_benchmark",
]
