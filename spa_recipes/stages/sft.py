"""Supervised fine-tuning of the base model: makes pi_init."""

from collections.abc import Mapping
from typing import Any

import datasets
import pyarrow as pa
from pydantic import TypeAdapter

from spa_recipes.data import counts
from spa_recipes.data.arrow import table_of
from spa_recipes.data.chat import Conversation, Renderer
from spa_recipes.data.sources import read_conversations
from spa_recipes.recipe.schema import DatasetSource, SandboxSource, Source, SupervisedTraining
from spa_recipes.stages.common import model_section, of_row, readable_by, renderer_of, say_read
from spa_recipes.stages.context import Context, Result
from spa_recipes.stages.training import stage_result, train_env
from spa_recipes.training.run import train_sft
from spa_recipes.units import count_of

TOKENS = pa.schema([("input_ids", pa.list_(pa.int32())), ("response_mask", pa.list_(pa.int8()))])
"""Conversations as `train_sft` takes them."""


def run(context: Context) -> Result:
    """Write `model/`."""
    model = model_section(context, "policy")
    renderer = renderer_of(model, context.notice)
    source: DatasetSource | SandboxSource = TypeAdapter(Source).validate_python(
        context.located(context.spec.settings["source"], "source")
    )
    loaded = read_conversations(source, context.draft, readable_by(model, lambda: renderer))
    say_read(loaded, "conversation")
    counts.check_skipped(loaded, source, "sft.data")
    renderer.removed_ends = 0  # rows that were tried come again
    rendered = (_conversation(renderer, row) for row in loaded.stored)
    table = table_of(({"input_ids": ids, "response_mask": mask} for ids, mask in rendered if any(mask)), TOKENS)
    cut = len(loaded.stored) - len(table)
    print(f"{count_of(len(table), 'conversation')}; {cut} without a response within max_length", flush=True)
    training, env = (
        SupervisedTraining.model_validate(context.spec.settings["training"]),
        train_env(context, model, renderer),
    )
    outcome = stage_result(train_sft(model.model_name_or_path, datasets.Dataset(table), training, env))
    outcome.metrics.update(
        form=loaded.form,
        skipped=len(loaded.skipped),
        skipped_why=counts.reasons(loaded.skipped),
        removed_ends=renderer.removed_ends,
    )
    return outcome


def _conversation(renderer: Renderer, row: Mapping[str, Any]) -> Conversation:
    with of_row(row):
        return renderer.conversation(row["messages"])
