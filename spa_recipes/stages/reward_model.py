"""The judge of a control: a reward model trained on the seed labels, starting from pi_init."""

from spa_recipes.data.rows import PairRow, read_rows
from spa_recipes.recipe.schema import Training
from spa_recipes.stages.common import model_section, renderer_of, token_pair
from spa_recipes.stages.context import Context, Result
from spa_recipes.stages.training import stage_result, train_env
from spa_recipes.training.reward import train_reward_model


def run(context: Context) -> Result:
    """Write `model/`."""
    model = model_section(context, "policy")
    renderer = renderer_of(model, context.notice)
    rows = [token_pair(renderer, pair) for pair in read_rows(context.input("pairs"), PairRow)]
    training = Training.model_validate(context.spec.settings["training"])
    env = train_env(context, model, renderer)
    found = train_reward_model(model.model_name_or_path, rows, training, env, end_ids=renderer.stop_ids)
    outcome = stage_result(found)
    outcome.metrics["removed_ends"] = renderer.removed_ends
    return outcome
