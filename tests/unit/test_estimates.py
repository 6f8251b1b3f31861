"""Estimates count what is really there, and are shown as people read them."""

from pathlib import Path
from typing import Any

from spa_recipes.estimates import Checkpoints, needs, parameters_of
from spa_recipes.plan import compile_plan
from spa_recipes.recipe.schema import Recipe
from spa_recipes.run.rundir import RunDir
from spa_recipes.run.spec import stage_spec
from spa_recipes.state.digests import DigestMemo
from spa_recipes.units import human_bytes, human_count, human_seconds
from tests.kit.recipes import merged, mini


def test_estimates_count_the_parameters_of_a_model_on_disk(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=56,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "model")
    recipe = Recipe.model_validate(mini(model={"model_name_or_path": str(tmp_path / "model")}, sft=None))
    assert parameters_of(recipe) == model.num_parameters()
    plan = compile_plan(recipe, DigestMemo(tmp_path / "memo"))
    need = needs(plan.stage("refine-1"), plan)
    assert need.memory is not None
    assert need.memory.held == model.num_parameters() * (16 + 4)  # AdamW in float32, and a live reference
    assert need.tokens == 32 * 2 * 128
    # Two steps, one checkpoint between them; a longer training has the two that stay and the next one being written.
    for save_steps, kept, most in ((1, 2, 1), (2, 2, 0)):
        storage = {"checkpoints_while_training": kept}
        assert scratch_of(recipe, 32, save_steps, storage, tmp_path) == most * model.num_parameters() * 12
    for kept in (1, 2):
        storage = {"checkpoints_while_training": kept}
        assert scratch_of(recipe, 320, 1, storage, tmp_path) == (kept + 1) * model.num_parameters() * 12


def scratch_of(recipe: Recipe, prompts: int, save_steps: int, storage: dict[str, int], folder: Path) -> int | None:
    """Room for checkpoints of refine-1, in batches of 16."""
    changes = {
        "data": {"prompts_per_iteration": [prompts], "pairs": {"rows": 1000}},
        "refine": {"save_steps": save_steps},
        "storage": storage,
    }
    changed = Recipe.model_validate(merged(recipe.model_dump(mode="json"), changes))
    plan = compile_plan(changed, DigestMemo(folder / "memo"))
    return needs(plan.stage("refine-1"), plan).scratch


def test_sandbox_size_is_the_real_one(tmp_path: Path) -> None:
    from safetensors import safe_open

    from spa_recipes.sandbox.model import build_model

    build_model(tmp_path / "model")
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as weights:
        size = sum(weights.get_tensor(name).numel() for name in weights.keys())  # noqa: SIM118
    assert parameters_of(Recipe.model_validate(mini())) == size


def test_figures_for_people() -> None:
    assert human_bytes(14_500_000_000) == "14.5 GB"
    assert human_count(61_440_000) == "61.4M"
    assert [human_seconds(s) for s in (4.24, 42, 200, 18600)] == ["4.2 s", "42 s", "3 min 20 s", "5 h 10 min"]
    assert human_bytes(None) == human_count(None) == "-"


def test_log_ratios_need_a_policys_update_beside_its_reference(tmp_path: Path) -> None:
    changes = {"num_parameters": 1000.0, "dtype": "bfloat16"}
    plan = compile_plan(Recipe.model_validate(mini(model=changes)), DigestMemo(tmp_path / "memo"))
    for name, models in (("log-ratios-1", 2), ("generate-1", 1)):
        memory = needs(plan.stage(name), plan).memory
        assert memory is not None
        assert memory.held == models * 2 * 1000


def test_in_half_precision_the_detector_needs_reference_and_update(tmp_path: Path) -> None:
    changes = {"num_parameters": 1000.0, "dtype": "bfloat16"}
    for noise, weights in (({"lambdas": [0.0, 0.0]}, 2), ({"lambdas": [0.5, 0.5]}, 2), ({"enabled": False}, 0)):
        recipe = Recipe.model_validate(mini(model=changes, noise=noise))
        plan = compile_plan(recipe, DigestMemo(tmp_path / "memo"))
        memory = needs(plan.stage("refine-1"), plan).memory
        assert memory is not None
        assert memory.held == 16 * 1000 + weights * 2 * 1000


def test_large_checkpoints_are_few_unless_the_recipe_says_otherwise(tmp_path: Path) -> None:
    def checkpoints(prompts: int, **changes: Any) -> tuple[Checkpoints, int | None]:
        recipe = mini(
            model={"num_parameters": 7.24e9, "dtype": "bfloat16"},
            data={"prompts_per_iteration": [prompts], "pairs": {"rows": 13000}},
            **changes,
        )
        plan = compile_plan(Recipe.model_validate(recipe), DigestMemo(tmp_path / "memo"))
        need = needs(plan.stage("refine-1"), plan)
        assert need.checkpoints is not None
        return need.checkpoints, need.scratch

    one = int(12 * 7.24e9)
    assert checkpoints(10_000) == (Checkpoints(every=313, kept=1, size=one, most=1), one)  # 625 steps
    assert checkpoints(3_200) == (Checkpoints(every=200, kept=1, size=one, most=0), 0)  # 200 steps
    said = {"refine": {"save_steps": 100}, "storage": {"checkpoints_while_training": 2}}
    assert checkpoints(10_000, **said) == (Checkpoints(every=100, kept=2, size=one, most=3), 3 * one)
    small = compile_plan(Recipe.model_validate(mini()), DigestMemo(tmp_path / "memo"))
    found = needs(small.stage("refine-1"), small).checkpoints
    assert found is not None
    assert (found.every, found.kept) == (200, 2)


def test_a_stage_is_told_how_often_to_save(tmp_path: Path) -> None:
    plan = compile_plan(Recipe.model_validate(mini(refine={"save_steps": 7})), DigestMemo(tmp_path / "memo"))
    run = RunDir(tmp_path / "run")
    for name, every in (("seed", 200), ("refine-1", 7)):
        spec = stage_spec(plan, run, plan.stage(name), 1, None)
        assert spec.settings["training"]["save_steps"] == every
        assert spec.runtime["storage"]["checkpoints_while_training"] == 2
