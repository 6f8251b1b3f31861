"""A rehearsal: a few rows through every stage with the real model, sizes and settings, and what the full run will take.

It has a folder of its own, in which no other run finds its stages. What it changes: the numbers of rows; three passes
over the rows of each training, so that its optimizer has all its memory from the second step on, a step is timed, and a
checkpoint is written; and no benchmarks and no stop rule, which judge results.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from spa_recipes.data.tables import COMPLETIONS, read_table
from spa_recipes.estimates import Memory, needs, steps_of
from spa_recipes.plan import KINDS, MODEL, Plan, Stage
from spa_recipes.recipe.schema import Recipe
from spa_recipes.run import usage
from spa_recipes.run.fit import hardware_for
from spa_recipes.run.rundir import RunDir
from spa_recipes.state.stagedir import Manifest

ROWS = 32
FOLDER = "rehearsals"
"""Below the folder of all runs."""


def rehearsed(recipe: Recipe) -> Recipe:
    """The recipe with `ROWS` rows in every part."""
    data = recipe.data
    seed_labels = ROWS if isinstance(data.seed_labels, float) else min(ROWS, data.seed_labels)
    changes: dict[str, Any] = {
        "data": {
            "seed_labels": seed_labels,
            "prompts_per_iteration": [min(ROWS, count) for count in data.prompts_per_iteration],
            "heldout": min(ROWS, data.heldout),
        },
        "seed_training": _TRAINING,
        "refine": _TRAINING,
        "evaluation": {"benchmarks": [], "max_judge_decay": None, "min_judge_reliability": None},
    }
    if recipe.sft is not None:
        rows = "rows" if recipe.sft.data.type == "sandbox" else "max_rows"
        changes["sft"] = {**_TRAINING, "data": {rows: ROWS}}
    if recipe.judge.type == "reward_model" and recipe.judge.training is not None:
        changes["judge"] = {"training": _TRAINING}
    return Recipe.model_validate(_merged(recipe.model_dump(mode="json"), changes))


_TRAINING: dict[str, Any] = {"num_train_epochs": 3, "save_steps": 2}


def _merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for key, value in changes.items():
        merged[key] = _merged(merged[key], value) if isinstance(value, dict) else value
    return merged


class Rehearsed(NamedTuple):
    """A stage that was rehearsed, and what it says of the full run.

    Attributes:
        used: what it used; None where it was not measured.
        estimate: of the full run, for rows as long as they may be; None where there is none.
        tokens_per_second: while it worked.
        seconds: that the full run will take for it; None where its number of rows is not known.
        disk: bytes that it will leave, likewise, and `checkpoints` those that it needs while it trains.
    """

    stage: Stage
    manifest: Manifest
    used: usage.Usage | None
    estimate: Memory | None
    tokens_per_second: float | None
    seconds: float | None
    disk: int | None
    checkpoints: int


def outcome(full: Plan, plan: Plan, run: RunDir) -> list[Rehearsed]:
    """What a rehearsal has found, stage by stage, as far as it came.

    Args:
        full: the plan of the recipe itself.
        plan, run: the rehearsal's.
    """
    found, hardware = [], hardware_for(full.recipe)
    for stage in plan.stages:
        folder = run.stage_dir(stage, plan)
        manifest = folder.manifest()
        if manifest is None or manifest.key != stage.key:
            continue
        whole = full.stage(stage.id)
        scale, need = _scale(stage, whole, manifest), needs(whole, full, hardware)
        used = usage.read(folder.path / "attempts" / str(manifest.attempt))
        made = sum(record.size for record in manifest.files.values())
        grows = MODEL not in KINDS[stage.kind].writes
        seconds = None
        if scale is not None:
            seconds = manifest.seconds * scale if used is None else used.seconds_of(scale)
        found.append(
            Rehearsed(
                stage,
                manifest,
                used,
                need.memory,
                _pace(manifest, used),
                seconds,
                made if not grows else None if scale is None else round(made * scale),
                used.checkpoint * need.checkpoints.most if used and need.checkpoints else 0,
            )
        )
    return found


def _scale(stage: Stage, whole: Stage, manifest: Manifest) -> float | None:
    """How many times the work of the rehearsal the full run has; None where its rows are not known."""
    if stage.kind == "data":
        return 1.0  # it reads all rows in both
    if "train" in KINDS[stage.kind].work:
        steps = steps_of(whole)
        return None if steps is None else steps / manifest.number("steps")
    if whole.rows is None or stage.rows is None:
        return 1.0 if whole.rows is stage.rows else None
    return whole.rows / max(1, stage.rows)


def _pace(manifest: Manifest, used: usage.Usage | None) -> float | None:
    """Tokens per second of the work itself."""
    if used is None or not manifest.tokens:
        return None
    work = used.seconds - used.seconds_of(0.0)
    return manifest.tokens / work if work > 0 else None


class Answer(NamedTuple):
    """A sampled answer as the model saw and wrote it, control tokens included."""

    prompt: str
    response: str


def first_answers(plan: Plan, run: RunDir, count: int = 2) -> Sequence[Answer]:
    """The first answers that the rehearsal sampled, decoded from their tokens; none where it sampled none."""
    for stage in plan.stages:
        folder = run.stage_dir(stage, plan)
        if stage.kind != "generate" or folder.manifest() is None:
            continue
        from spa_recipes.data.chat import load_tokenizer

        model = run.input_path(stage.inputs["policy"], plan)
        tokenizer = load_tokenizer(model, chat_template=plan.recipe.model.chat_template)
        table = read_table(folder.output / "completions.parquet", COMPLETIONS).slice(0, count)
        return [
            Answer(*(tokenizer.decode(row[name], skip_special_tokens=False) for name in ("prompt_ids", "response_ids")))
            for row in table.to_pylist()
        ]
    return []
