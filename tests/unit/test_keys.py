"""Keys change with what changes a result, and with nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest

from spa_recipes.plan import compile_plan
from spa_recipes.plan.keys import differences, semantic, with_defaults
from spa_recipes.recipe.schema import (
    ImplicitRewardJudge,
    PercentileThreshold,
    PreferenceTraining,
    Recipe,
    Sampling,
    Section,
    TransformersBackend,
    VllmBackend,
)
from spa_recipes.state.digests import DigestMemo
from tests.kit.golden_keys import ROOT, STORE, golden_keys
from tests.kit.plans import plan_of
from tests.kit.recipes import mini


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


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float16"])
def test_rounding_is_in_the_keys_of_what_it_changes(dtype: str) -> None:
    """Of all trainings, the reward model's too, and so of all that reads their models; of nothing else."""

    def keys(rounding: str | None, **changes: Any) -> dict[str, str]:
        return keys_of(model={"dtype": dtype, "save_rounding": rounding}, judge={"type": "reward_model"}, **changes)

    default, stochastic, nearest = (keys(rounding) for rounding in (None, "stochastic", "nearest"))
    assert default == stochastic
    same = {name for name in default if default[name] == nearest[name]}
    assert same == {"data", "base"}
    (training,) = (stage for stage in plan_of(model={"dtype": dtype}).stages if stage.id == "seed")
    assert training.material["settings"]["model"]["save_rounding"] == "stochastic"


def test_rounding_is_in_no_key_of_a_stage_that_trains_nothing() -> None:
    """pi_init from outside is sampled from as it is."""
    outside = {"sft": None, "evaluation": {"reward": "none"}}
    plans = [
        plan_of(model={"model_name_or_path": "org/m", "dtype": "bfloat16", "save_rounding": rounding}, **outside)
        for rounding in ("stochastic", "nearest")
    ]
    keys = [plan.stage("evaluate-init").key for plan in plans]
    assert keys[0] == keys[1]
    assert plans[0].stage("evaluate-0").key != plans[1].stage("evaluate-0").key


@pytest.mark.parametrize(
    ("noise", "is_known"), [({}, True), ({"detector": "both"}, True), ({"detector": "judge"}, False), (None, False)]
)
def test_that_p_is_a_derivative_is_in_the_keys_of_half_precision(noise: dict[str, Any] | None, is_known: bool) -> None:
    recipe = {"noise": {"enabled": False} if noise is None else noise}
    half, whole = (plan_of(model={"dtype": dtype}, **recipe) for dtype in ("bfloat16", "float32"))
    known = [stage.id for stage in half.stages if "p_detect" in stage.material["settings"]]
    assert known == (["refine-1", "refine-2"] if is_known else [])
    assert not any("p_detect" in stage.material["settings"] for stage in whole.stages)


def test_no_key_of_float32_knows_of_rounding() -> None:
    assert all("save_rounding" not in json.dumps(stage.material) for stage in plan_of().stages)


def test_differences_name_the_field() -> None:
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}) == ["a.c: 2 -> 3"]
    assert differences({"a": 1}, {"a": 1}) == []


def test_no_key_of_a_shipped_recipe_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert golden_keys() == json.loads(STORE.read_text()), "on purpose? then run python -m tests.kit.golden_keys"


class _Tail(Section):
    cut: int = 1


class _GrownSampling(Sampling):
    """The section as a later version may have it."""

    min_p: float = 0.0
    tail: _Tail = _Tail()


def test_a_new_setting_with_a_default_moves_no_key() -> None:
    recipe = Recipe.model_validate(mini())
    grown = _GrownSampling.model_validate(recipe.sampling.model_dump())
    nowhere = DigestMemo(Path("nowhere/.digests.json"))

    def keys(sampling: Sampling) -> dict[str, str]:
        plan = compile_plan(recipe.model_copy(update={"sampling": sampling}), nowhere)
        return {stage.id: stage.key for stage in plan.stages}

    assert keys(grown) == keys(recipe.sampling)
    assert keys(grown.model_copy(update={"min_p": 0.1}))["generate-1"] != keys(recipe.sampling)["generate-1"]
    assert keys(grown.model_copy(update={"tail": _Tail(cut=2)}))["generate-1"] != keys(recipe.sampling)["generate-1"]


def test_a_section_is_what_differs_from_its_defaults() -> None:
    assert semantic(Sampling()) == {}
    assert semantic(Sampling(n=4)) == {"n": 4}
    assert semantic(Sampling(backend=TransformersBackend(batch_size=3))) == {}  # runtime only
    assert semantic(Sampling(backend=VllmBackend(type="vllm"))) == {"backend": {"type": "vllm"}}


def test_the_type_of_a_union_is_always_in_a_key() -> None:
    for section in (ImplicitRewardJudge(), PercentileThreshold(), TransformersBackend()):
        assert semantic(section) == {"type": section.type}


def test_a_place_is_no_part_of_a_key_but_its_content_is(tmp_path: Path) -> None:
    def key(folder: Path, content: str) -> str:
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(content)
        return keys_of(model={"model_name_or_path": str(folder)}, sft=None)["seed"]

    one = key(tmp_path / "a", "{}")
    assert key(tmp_path / "b", "{}") == one
    assert key(tmp_path / "b", '{"hidden_size": 1}') != one


def test_defaults_are_filled_in_for_people() -> None:
    now = Sampling(n=4, backend=VllmBackend(type="vllm"))
    old = with_defaults(semantic(Sampling()), now)
    assert (old["n"], old["temperature"]) == (2, 0.7)
    assert differences(old, with_defaults(semantic(now), now)) == [
        'backend.lora: default -> "merged"',
        'backend.type: "transformers" -> "vllm"',
        "n: 2 -> 4",
    ]


def test_a_difference_to_the_default_says_so() -> None:
    assert differences({}, {"n": 4}) == ["n: default -> 4"]
    assert differences({"n": 4}, {}) == ["n: 4 -> default"]
    assert differences({"n": None}, {}) == ["n: null -> default"]
