"""What a rehearsal changes of a recipe, and what it makes of the times and sizes that it sees."""

import pytest

from spa_recipes.recipe.schema import Recipe
from spa_recipes.run.rehearsal import ROWS, rehearsed
from spa_recipes.run.usage import Usage
from spa_recipes.stages.context import Pace
from tests.kit.recipes import mini


def test_rows_are_few_and_all_that_decides_memory_stays() -> None:
    recipe = Recipe.model_validate(
        mini(
            data={"seed_labels": 0.5, "prompts_per_iteration": [200, 20]},
            judge={"type": "reward_model", "training": {"global_batch_size": 8}},
            evaluation={"max_judge_decay": 0.1},
        )
    )
    short = rehearsed(recipe)
    assert (short.data.seed_labels, short.data.prompts_per_iteration, short.data.heldout) == (ROWS, [ROWS, 20], 24)
    assert short.sft is not None
    assert short.sft.data.type == "sandbox"
    assert short.sft.data.rows == ROWS
    assert short.evaluation.max_judge_decay is None
    for name in ("model", "sampling", "noise", "compute"):
        assert getattr(short, name) == getattr(recipe, name)
    changed = {"num_train_epochs": 3, "save_steps": 2}
    assert short.refine == recipe.refine.model_copy(update=changed)
    assert short.judge.type == "reward_model"
    assert short.judge.training is not None
    assert short.judge.training.num_train_epochs == 3


def test_a_dataset_is_cut_by_its_own_setting() -> None:
    recipe = mini()
    recipe["sft"]["data"] = {"type": "dataset", "source": "ultrachat"}
    short = rehearsed(Recipe.model_validate(recipe))
    assert short.sft is not None
    assert short.sft.data.type == "dataset"
    assert short.sft.data.max_rows == ROWS


def used(parts: list[list[tuple[float, int]]], seconds: float, checkpoint: int = 0) -> Usage:
    return Usage(device=None, host=0, seconds=seconds, parts=parts, checkpoint=checkpoint)


def test_time_grows_with_the_work_and_not_with_what_is_done_once() -> None:
    # 20 s until the first of 4 steps has ended, 2 s for each after it; 28 s in all.
    steps = used([[(20.0, 1), (22.0, 2), (26.0, 4)]], 28.0)
    assert steps.seconds_of(1.0) == pytest.approx(28.0)
    assert steps.seconds_of(0.0) == pytest.approx(20.0)
    assert steps.seconds_of(100.0) == pytest.approx(20.0 + 800.0)
    # A checkpoint is written after the second step: the time between the first two has none of that.
    assert used([[(20.0, 1), (22.0, 2), (90.0, 3)]], 92.0, checkpoint=1).seconds_of(100.0) == pytest.approx(
        86.0 + 600.0
    )
    # One report alone: all that came before it may be work.
    assert used([[(10.0, 64)]], 12.0).seconds_of(2.0) == pytest.approx(22.0)
    assert used([], 12.0).seconds_of(5.0) == 12.0


def test_each_part_of_a_stage_has_a_pace_of_its_own() -> None:
    pace = Pace(begun=100.0)
    for now, done, unit in ((101.0, 1, "responses"), (102.0, 2, "responses"), (103.0, 3, "responses")):
        pace.note(now, done, unit)
    pace.note(110.0, 1, "responses")  # another model's
    pace.note(120.0, 5, "answers")
    assert pace.parts == [[(1.0, 1), (2.0, 2), (3.0, 3)], [(10.0, 1)], [(20.0, 5)]]
