"""The plan: which stages, what they read, and that the two references of the method never mix."""

from pathlib import Path

import pytest

from spa_recipes.errors import RecipeError
from spa_recipes.plan import External, Plan, StageOutput, compile_plan
from spa_recipes.recipe.schema import Recipe
from spa_recipes.state.digests import DigestMemo
from tests.kit.plans import plan_of
from tests.kit.recipes import mini

GOLDEN = """
data: data pairs=sandbox
base: init_model
sft: sft policy=base/model source=sandbox
evaluate-init: evaluate heldout=data/heldout.jsonl policy=sft/model
seed: dpo pairs=data/seed.jsonl policy=sft/model reference=sft/model
evaluate-0: evaluate heldout=data/heldout.jsonl init_logps=evaluate-init/heldout.jsonl init_samples=evaluate-init/samples.jsonl policy=seed/model
generate-1: generate policy=seed/model prompts=data/prompts-1.jsonl
score-1-reference: score completions=generate-1/completions.parquet model=sft/model
judge-1: judge completions=generate-1/completions.parquet prompts=data/prompts-1.jsonl reference_logps=score-1-reference/logps.parquet
refine-1: refine completions=generate-1/completions.parquet judgments=judge-1/judgments.jsonl policy=seed/model reference=seed/model
evaluate-1: evaluate heldout=data/heldout.jsonl init_logps=evaluate-init/heldout.jsonl init_samples=evaluate-init/samples.jsonl policy=refine-1/model
generate-2: generate policy=refine-1/model prompts=data/prompts-2.jsonl
score-2-reference: score completions=generate-2/completions.parquet model=sft/model
judge-2: judge completions=generate-2/completions.parquet prompts=data/prompts-2.jsonl reference_logps=score-2-reference/logps.parquet
refine-2: refine completions=generate-2/completions.parquet judgments=judge-2/judgments.jsonl policy=refine-1/model reference=refine-1/model
evaluate-2: evaluate heldout=data/heldout.jsonl init_logps=evaluate-init/heldout.jsonl init_samples=evaluate-init/samples.jsonl policy=refine-2/model
"""  # noqa: E501


def shown(plan: Plan) -> str:
    lines = []
    for stage in plan.stages:
        inputs = "".join(f" {name}={stage.inputs[name]}" for name in sorted(stage.inputs))
        lines.append(f"{stage.id}: {stage.kind}{inputs}")
    return "\n".join(lines)


def test_golden_plan_of_the_miniature() -> None:
    assert shown(plan_of()) == GOLDEN.strip()


def test_the_judge_reads_pi_init_and_the_trainer_pi_before() -> None:
    plan = plan_of(data={"prompts_per_iteration": [8, 8, 8]})
    init = StageOutput("sft", "model")
    for i, before in enumerate(["seed", "refine-1", "refine-2"], start=1):
        assert plan.stage(f"score-{i}-reference").inputs["model"] == init
        refine = plan.stage(f"refine-{i}")
        assert refine.inputs["reference"] == refine.inputs["policy"] == StageOutput(before, "model")
        assert plan.stage(f"generate-{i}").inputs["policy"] == StageOutput(before, "model")


def test_lambda_halves_by_default_and_is_zero_without_noise() -> None:
    assert [plan_of().stage(f"refine-{i}").settings["lambda"] for i in (1, 2)] == [0.5, 0.25]
    assert plan_of(noise={"enabled": False}).stage("refine-2").settings["lambda"] == 0.0


def test_zero_labels_start_at_pi_init_and_judge_against_the_base() -> None:
    judge = {"type": "implicit_reward", "reference": "base"}
    plan = plan_of(data={"seed_labels": 0}, judge=judge)
    assert "seed" not in [stage.id for stage in plan.stages]
    assert plan.stage("generate-1").inputs["policy"] == StageOutput("sft", "model")
    assert plan.stage("score-1-reference").inputs["model"] == StageOutput("base", "model")


def test_controls_need_no_reference_scores() -> None:
    for kind in ("gold", "random"):
        plan = plan_of(judge={"type": kind})
        assert not any(stage.kind == "score" for stage in plan.stages)


def test_recompute_adds_a_second_table() -> None:
    plan = plan_of(judge={"type": "implicit_reward", "recompute_policy_logps": True})
    assert plan.stage("score-2-policy").inputs["model"] == StageOutput("refine-1", "model")
    assert "policy_logps" in plan.stage("judge-2").inputs


def test_until_and_unknown_stages() -> None:
    plan = plan_of()
    assert [stage.id for stage in plan.until("seed")][-1] == "seed"
    with pytest.raises(RecipeError, match="generate-1"):
        plan.until("generate")


def test_the_content_of_a_local_model_is_part_of_the_key(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    recipe = Recipe.model_validate(mini(model={"model_name_or_path": str(folder)}, sft=None))

    def seed_key() -> str:
        return compile_plan(recipe, DigestMemo(tmp_path / "memo.json")).stage("seed").key

    before = seed_key()
    assert seed_key() == before
    (folder / "config.json").write_text('{"hidden_size": 1}')
    assert seed_key() != before


def test_a_hub_model_is_known_by_its_revision() -> None:
    recipe = Recipe.model_validate(mini(model={"model_name_or_path": "org/model", "revision": "abc"}, sft=None))
    policy = compile_plan(recipe, DigestMemo(Path("nowhere/x"))).stage("seed").inputs["policy"]
    assert policy == External("org/model", "hub:org/model@abc", "abc")


def test_a_share_of_the_labels_is_counted_where_that_is_cheap() -> None:
    assert plan_of(data={"seed_labels": 0.05}).stage("seed").rows == 20
    hub = mini(model={"model_name_or_path": "org/model"}, sft=None, evaluation={"reward": "none"})
    hub["data"] |= {"pairs": {"source": "org/pairs"}, "seed_labels": 0.05}
    plan = compile_plan(Recipe.model_validate(hub), DigestMemo(Path("nowhere/x")))
    assert plan.stage("seed").rows is None


HALF = """
evaluate-0: evaluate heldout=data/heldout.jsonl init=sft/model init_samples=evaluate-init/samples.jsonl policy=seed/model
generate-1: generate policy=seed/model prompts=data/prompts-1.jsonl
log-ratios-1: log_ratios completions=generate-1/completions.parquet policy=seed/model reference=sft/model
judge-1: judge completions=generate-1/completions.parquet log_ratios=log-ratios-1/log_ratios.parquet prompts=data/prompts-1.jsonl
refine-1: refine completions=generate-1/completions.parquet judgments=judge-1/judgments.jsonl log_ratios=log-ratios-1/log_ratios.parquet policy=seed/model reference=seed/model
"""  # noqa: E501


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float16"])
def test_in_half_precision_one_stage_reads_both_models(dtype: str) -> None:
    """Nothing scores a model alone, and pi_init stays the judge's reference."""
    plan = plan_of(model={"dtype": dtype}, data={"prompts_per_iteration": [8, 8]})
    assert HALF.strip() in shown(plan)
    assert not any(stage.kind == "score" for stage in plan.stages)
    assert plan.stage("log-ratios-2").inputs["reference"] == StageOutput("sft", "model")
    assert plan.stage("log-ratios-2").inputs["policy"] == StageOutput("refine-1", "model")


def test_float32_reads_both_models_where_a_setting_asks_for_it() -> None:
    def kinds(**judge: object) -> set[str]:
        return {stage.kind for stage in plan_of(judge={"type": "implicit_reward", **judge}).stages}

    assert "log_ratios" not in kinds(method="difference")
    assert "log_ratios" in kinds(method="tangent")
    assert "log_ratios" in kinds(min_margin_in_noise=2.0)


def test_the_method_moves_no_key_in_float32() -> None:
    asked = plan_of(judge={"type": "implicit_reward", "method": "difference"})
    assert [stage.key for stage in asked.stages] == [stage.key for stage in plan_of().stages]


def test_the_method_is_in_the_keys_of_all_that_it_changes_in_half_precision() -> None:
    def keys(method: str) -> dict[str, str]:
        judge = {"type": "implicit_reward", "method": method}
        return {stage.id: stage.key for stage in plan_of(model={"dtype": "bfloat16"}, judge=judge).stages}

    auto, tangent = keys("auto"), keys("tangent")
    moved = {name for name in auto if auto[name] != tangent[name]}
    assert moved >= {"evaluate-init", "evaluate-0", "log-ratios-1", "judge-1", "refine-1"}
    assert not moved & {"data", "sft", "seed", "generate-1"}


def test_without_lambda_the_plan_names_the_source_of_the_references_log_probs() -> None:
    kept, scored = (plan_of(model={"dtype": dtype}, noise={"enabled": False}) for dtype in ("float32", "bfloat16"))
    assert kept.stage("refine-2").role.endswith("reference pi_1 (its log-probs: kept)")
    assert scored.stage("refine-2").role.endswith("reference pi_1 (its log-probs: scored)")
    assert scored.stage("refine-2").inputs["reference_logps"] == StageOutput("score-2-policy", "logps.parquet")
    assert scored.stage("score-2-policy").inputs["model"] == StageOutput("refine-1", "model")
