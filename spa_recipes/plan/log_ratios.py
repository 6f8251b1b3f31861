"""Where log pi(y|x) - log pi_ref(y|x) comes from: two tables of log-probs, or one stage that reads both models."""

from typing import Any

from spa_recipes.plan.stages import Builder, Input, StageOutput
from spa_recipes.recipe.schema import Method, Model

LOG_RATIOS = "log_ratios.parquet"
LOG_RATIOS_INPUT = "log_ratios"
"""What a stage that reads the file calls it."""


def of_both_models(model: Model, method: Method, *, with_noise: bool = False) -> bool:
    """Whether one stage reads policy and reference and gives log-ratios.

    Otherwise each model has a table of log-probs, and these are subtracted: exact enough in float32 alone. `auto` may
    be half precision on the machine that runs the stage. With QLoRA they are two adapters on one model in 4 bits.

    Args:
        with_noise: the recipe asks for the standard error of every margin, which needs both models, too.
    """
    return model.dtype != "float32" or model.in_4bit or method == "tangent" or with_noise


def add_log_ratios(
    build: Builder,
    stage_id: str,
    role: str,
    *,
    model: dict[str, Any],
    method: Method,
    inputs: dict[str, Input],
    rows: int | None = None,
) -> StageOutput:
    """Add the stage that reads both models.

    Args:
        model: the model section as settings of a stage.
        inputs: policy, reference and completions; an `adapter` on top of the policy.
    """
    build.add(stage_id, "log_ratios", role, settings={**model, "method": method}, inputs=inputs, rows=rows)
    return StageOutput(stage_id, LOG_RATIOS)
