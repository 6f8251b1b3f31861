"""Keys change with what changes a result, and with nothing else."""

import pytest

from spa_recipes.keys import differences, semantic
from spa_recipes.recipe.schema import PreferenceTraining
from tests.kit.plans import plan_of


def keys_of(**changes: object) -> dict[str, str]:
    return {stage.id: stage.key for stage in plan_of(**changes).stages}


def test_runtime_settings_are_left_out() -> None:
    full = PreferenceTraining(per_device_train_batch_size=8, save_steps=5, learning_rate=1e-6)
    assert semantic(full)["learning_rate"] == 1e-6
    assert not {"per_device_train_batch_size", "save_steps", "logging_steps", "gradient_checkpointing"} & set(
        semantic(full)
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"description": "words"},
        {"compute": {"executor": {"type": "local"}, "cpu_threads": 2, "score_tokens_per_batch": 99}},
        {"storage": {"keep_checkpoints": True, "checkpoints_while_training": 1}},
        {"tracking": {"report_to": ["tensorboard"]}},
        {"seed_training": {"per_device_train_batch_size": 4, "save_steps": 3, "gradient_checkpointing": True}},
        {"sampling": {"backend": {"type": "transformers", "batch_size": 8, "shard_size": 4}}},
        {"model": {"num_parameters": 1e6}},
        {"evaluation": {"num_samples": 9}},
    ],
)
def test_what_does_not_change_a_result_does_not_change_a_key(changes: dict[str, object]) -> None:
    assert keys_of(**changes) == keys_of()


@pytest.mark.parametrize(
    ("changes", "first_stale", "untouched"),
    [
        ({"seed": 8}, "base", ["data"]),
        ({"sft": {"learning_rate": 1e-3}}, "sft", ["base", "data"]),
        ({"seed_training": {"beta": 0.2}}, "seed", ["sft", "data"]),
        ({"refine": {"learning_rate": 1e-6}}, "refine-1", ["seed", "generate-1", "judge-1"]),
        ({"noise": {"alpha": 0.3}}, "refine-1", ["judge-1"]),
        ({"noise": {"lambdas": [0.5, 0.125]}}, "refine-2", ["refine-1", "judge-2"]),
        ({"judge": {"type": "implicit_reward", "beta": 0.3}}, "judge-1", ["generate-1", "score-1-reference"]),
        ({"sampling": {"n": 4}}, "generate-1", ["seed", "evaluate-init"]),
        ({"data": {"pairs": {"rows": 401}}}, "data", ["sft"]),
        ({"evaluation": {"max_prompts": 8}}, "evaluate-init", ["refine-2", "seed"]),
    ],
)
def test_a_change_reaches_the_stages_that_it_affects(
    changes: dict[str, object], first_stale: str, untouched: list[str]
) -> None:
    before, after = keys_of(), keys_of(**changes)
    stale = [name for name in before if before[name] != after[name]]
    assert stale
    assert stale[0] == first_stale
    assert not set(untouched) & set(stale)


def test_plain_dpo_and_spa_share_everything_up_to_the_seed_stage() -> None:
    spa, dpo = keys_of(), keys_of(data={"prompts_per_iteration": []})
    shared = ["base", "sft", "evaluate-init", "seed", "evaluate-0"]
    assert [spa[name] for name in shared] == [dpo[name] for name in shared]


def test_another_number_of_seed_labels_keeps_sft_and_the_evaluation_of_pi_init() -> None:
    few, many = keys_of(), keys_of(data={"seed_labels": 90})
    assert few["sft"] == many["sft"]
    assert few["evaluate-init"] == many["evaluate-init"]
    assert few["seed"] != many["seed"]


def test_a_further_iteration_keeps_the_earlier_ones() -> None:
    two, three = keys_of(), keys_of(data={"prompts_per_iteration": [32, 48, 40]})
    assert [two[name] for name in two if name != "data"] == [three[name] for name in two if name != "data"]


def test_differences_name_the_field() -> None:
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}) == ["a.c: 2 -> 3"]
    assert differences({"a": 1}, {"a": 1}) == []
