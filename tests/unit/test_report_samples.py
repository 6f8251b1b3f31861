"""Sample answers are from the whole range of what changed, by a rule that is said."""

from collections.abc import Mapping
from typing import cast

from spa_recipes.data.stage_rows import SampleRow
from spa_recipes.report.samples import shown_samples


def rows(rewards: Mapping[str, float | None], answers: int = 1) -> list[SampleRow]:
    return [
        cast(SampleRow, {"prompt_id": prompt, "sample": k, "reward": None if reward is None else reward + k})
        for prompt, reward in rewards.items()
        for k in range(answers)
    ]


BEFORE = {f"p{i}": 1.0 for i in range(9)}
AFTER = {f"p{i}": 1.0 + (i * 4) % 9 for i in range(9)}  # changes 0, 4, 8, 3, 7, 2, 6, 1, 5


def test_of_one_prompt_the_median_change_is_shown() -> None:
    shown = shown_samples(rows(BEFORE, 2), rows(AFTER, 2), 1)  # further answers to a prompt do not count
    assert [AFTER[prompt] - 1.0 for prompt in shown.prompt_ids] == [4.0]
    assert shown.rule == "held-out prompts at 50% of the changes of reward, from the worst to the best"


def test_of_three_each_third_shows_its_middle() -> None:
    shown = shown_samples(rows(BEFORE), rows(AFTER), 3)
    assert [AFTER[prompt] - 1.0 for prompt in shown.prompt_ids] == [1.0, 4.0, 7.0]
    assert "at 17%, 50%, 83% of the changes" in shown.rule


def test_no_prompt_is_shown_twice_where_there_are_few() -> None:
    assert shown_samples(rows({"a": 1.0, "b": 1.0}), rows({"a": 2.0, "b": 0.0}), 5).prompt_ids == ["b", "a"]


def test_without_rewards_the_first_prompts_are_shown_and_that_is_said() -> None:
    nothing = dict.fromkeys(BEFORE)
    shown = shown_samples(rows(nothing), rows(nothing), 2)
    assert shown == (["p0", "p1"], "the first held-out prompts")
