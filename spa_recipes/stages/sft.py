"""Supervised fine-tuning of the base model: makes pi_init."""

from pydantic import TypeAdapter

from spa_recipes.data.sources import read_conversations
from spa_recipes.recipe.schema import DatasetSource, SandboxSource, Source, Training
from spa_recipes.stages.common import model_section, renderer_of
from spa_recipes.stages.context import Context, Result
from spa_recipes.stages.training import stage_result, train_env
from spa_recipes.training.run import train_sft


def run(context: Context) -> Result:
    """Write `model/`."""
    model = model_section(context, "policy")
    renderer = renderer_of(model)
    loaded = read_conversations(_source(context))
    rendered = [renderer.conversation(row["messages"]) for row in loaded.rows]
    rows = [{"input_ids": ids, "response_mask": mask} for ids, mask in rendered if any(mask)]
    print(f"{len(rows)} conversations; {len(rendered) - len(rows)} without a response within max_length", flush=True)
    training = Training.model_validate(context.spec.settings["training"])
    outcome = stage_result(train_sft(model.model_name_or_path, rows, training, train_env(context, model, renderer)))
    outcome.metrics.update(form=loaded.form, skipped=len(loaded.skipped))
    return outcome


def _source(context: Context) -> DatasetSource | SandboxSource:
    settings = dict(context.spec.settings["source"])
    if "source" in settings:
        settings["source"] = context.spec.inputs["source"]
    source: DatasetSource | SandboxSource = TypeAdapter(Source).validate_python(settings)
    return source
