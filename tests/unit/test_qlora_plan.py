"""With QLoRA, pi_init's weights are in 4 bits in every iteration, and what reads a policy reads adapters on them."""

from typing import Any

import pytest
from pydantic import ValidationError

from spa_recipes.estimates import needs
from spa_recipes.plan import Plan, StageOutput
from spa_recipes.plan.stages import Stage
from tests.kit.plans import plan_of

INIT = StageOutput("sft", "model")
FOUR_BITS: dict[str, Any] = {"dtype": "bfloat16", "lora": {"load_in_4bit": True}}


@pytest.fixture(scope="module")
def plan() -> Plan:
    return plan_of(model=FOUR_BITS, evaluation={"reward": "seed"})


def test_every_training_stacks_on_the_weights_of_pi_init(plan: Plan) -> None:
    assert plan.stage("sft").inputs["base"] == plan.stage("sft").inputs["policy"]
    for name, stack in (("seed", None), ("refine-1", "seed"), ("refine-2", "refine-1")):
        inputs = plan.stage(name).inputs
        assert inputs["base"] == INIT
        assert inputs.get("adapter") == (None if stack is None else StageOutput(stack, "adapter"))


def test_the_judge_reads_two_adapters_on_one_model(plan: Plan) -> None:
    for i, policy in ((1, "seed"), (2, "refine-1")):
        inputs = plan.stage(f"log-ratios-{i}").inputs
        assert (inputs["policy"], inputs["reference"]) == (INIT, INIT)
        assert inputs["adapter"] == StageOutput(policy, "adapter")
        evaluated = plan.stage(f"evaluate-{i - 1}").inputs
        assert (evaluated["init"], evaluated["stack"]) == (INIT, StageOutput(policy, "adapter"))
        assert evaluated["reward_stack"] == StageOutput("seed", "adapter")


def test_the_reference_of_a_refinement_is_scored_nowhere_else(plan: Plan) -> None:
    """At lambda 0, too, it is the policy without its new adapter: on the same weights in 4 bits."""
    plain = plan_of(model=FOUR_BITS, noise={"lambdas": [0.0, 0.0]})
    assert not [stage.id for one in (plan, plain) for stage in one.stages if stage.kind == "score"]


def test_in_float32_both_are_read_together_too() -> None:
    plan = plan_of(model={**FOUR_BITS, "dtype": "float32"})
    assert plan.stage("log-ratios-2").inputs["adapter"] == StageOutput("refine-1", "adapter")


def test_a_judge_on_another_model_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"adapters on pi_init in 4 bits, and judge\.reference base is another"):
        plan_of(model=FOUR_BITS, judge={"reference": "base"})


def test_a_mixed_reference_is_refused() -> None:
    with pytest.raises(ValidationError, match="and that of QLoRA is the policy without its new adapter"):
        plan_of(model=FOUR_BITS, refine={"reference_mix": 0.5}, noise={"lambdas": [0.0, 0.0]})


def test_weights_that_no_adapter_makes_are_read_as_they_are_stored() -> None:
    inputs = plan_of(model=FOUR_BITS, final={"extrapolate": 0.5}).stage("evaluate-extrapolated").inputs
    assert inputs["init"] == INIT
    assert "stack" not in inputs


def test_log_ratios_of_adapters_need_memory_for_one_model(plan: Plan) -> None:
    def memory(stage: Stage, of: Plan) -> int:
        found = needs(stage, of).memory
        assert found is not None
        return found.held

    whole = plan_of(model={"dtype": "bfloat16"})
    one, two = (memory(of.stage("log-ratios-1"), of) for of in (plan, whole))
    assert two == 2 * one
