"""DPO on the seed labels, or a member's part of them: makes pi_0 from pi_init, with pi_init as the reference.

Policy and reference start as the same model, so the reference's log-probs are scored once before training and no
second model is kept in memory. With QLoRA both have the same weights in 4 bits, and the training gives both log-probs.
"""

from spa_recipes.data.rows import PairRow, read_rows
from spa_recipes.data.shares import part_of
from spa_recipes.recipe.schema import PreferenceTraining
from spa_recipes.stages.common import model_section, renderer_of, token_pair
from spa_recipes.stages.context import Context, Result
from spa_recipes.stages.training import add_reference_logps, stage_result, train_env
from spa_recipes.training.run import Start, train_preference


def run(context: Context) -> Result:
    """Write `model/`."""
    return train_on_labels(context)


def train_on_labels(context: Context, steps: int | None = None) -> Result:
    """DPO on the seed labels; `steps` as in `train_preference`."""
    model = model_section(context, "policy")
    renderer = renderer_of(model, context.notice)
    settings = context.spec.settings
    pairs = read_rows(context.input("pairs"), PairRow)
    if "member" in settings:
        pairs = part_of(pairs, settings["member"], settings.get("shares"), settings["seed"])
    rows = [token_pair(renderer, pair) for pair in pairs]
    if not model.in_4bit:  # there the reference is the policy without its adapter
        add_reference_logps(context, rows)
    training = PreferenceTraining.model_validate(settings["training"])
    env = train_env(context, model, renderer)
    result = train_preference(
        model.model_name_or_path,
        rows,
        training,
        env,
        reference_path=None,
        refinement=None,
        start=Start(),
        steps=steps,
    )
    outcome = stage_result(result)
    outcome.metrics["removed_ends"] = renderer.removed_ends
    return outcome
