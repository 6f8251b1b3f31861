"""What the training stages share: the environment of a trainer, and rows ready for it."""

import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spa_recipes.data.chat import Renderer
from spa_recipes.plan import ADAPTER, MODEL
from spa_recipes.recipe.schema import Model
from spa_recipes.stages.common import TokenPair, model_section
from spa_recipes.stages.context import Context, Result
from spa_recipes.stages.score import score_pairs
from spa_recipes.state import atomic
from spa_recipes.state.reading import read_text
from spa_recipes.training.run import TrainEnv, TrainResult


def train_env(context: Context, model: Model, renderer: Renderer) -> TrainEnv:
    """Folders, seed and tracking of this stage's trainer."""

    def report(done: int, total: int, logs: dict[str, Any]) -> None:
        note = f"loss {logs['loss']:.4f}" if "loss" in logs else ""
        context.progress(done, total, "steps", note)

    # Without this, transformers writes TensorBoard's files among the checkpoints, which are deleted after the stage.
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(context.attempt_dir / "tensorboard"))
    trackers = context.spec.runtime["tracking"]["report_to"]
    if "wandb" in trackers and context.rank == 0:
        os.environ.setdefault("WANDB_RUN_ID", _kept_id(context.work / "checkpoints" / "wandb-run-id"))
        os.environ.setdefault("WANDB_RESUME", "allow")
    inputs = context.spec.inputs
    return TrainEnv(
        model=model,
        key=context.spec.key,
        seed=context.spec.settings["seed"],
        output_dir=context.draft / MODEL,
        adapter_dir=context.draft / ADAPTER,
        checkpoint_dir=context.work / "checkpoints",
        checkpoints_kept=context.spec.runtime["storage"]["checkpoints_while_training"],
        tokenizer=renderer.tokenizer,
        base=model_section(context, "base") if "base" in inputs else None,
        stack=context.input("adapter") if "adapter" in inputs else None,
        sharding=context.spec.runtime["sharding"],
        onednn_products=context.spec.runtime["compute"]["onednn_products"],
        report_to=trackers,
        run_name=f"{context.spec.runtime['run']}/{context.spec.id}",
        on_progress=report,
        on_notice=context.notice,
    )


def _kept_id(path: Path) -> str:
    """An id that all attempts of a stage have, so that a tracker goes on with the same run."""
    if not path.is_file():
        atomic.make_folder(path.parent)
        atomic.write_text(path, secrets.token_hex(8))
    return read_text(path).strip()


def add_reference_logps(context: Context, rows: Sequence[TokenPair]) -> None:
    """Score both responses of labelled pairs under the stage's `reference`, into the columns that training reads."""
    logps = score_pairs(context, "reference", model_section(context, "reference"), rows, every_process=True)
    assert logps is not None
    for row, (chosen, rejected) in zip(rows, logps, strict=True):
        row["ref_chosen_logps"], row["ref_rejected_logps"] = chosen, rejected


def stage_result(result: TrainResult) -> Result:
    """A trainer's result as a stage's."""
    return Result(result.rows, result.tokens, {"steps": result.steps, **result.metrics})
