"""The last policy, moved further away from pi_init: its weights, how it is stored, and its place in a plan."""

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from spa_recipes.errors import StageError
from spa_recipes.estimates import needs
from spa_recipes.models.extrapolation import extrapolated
from spa_recipes.plan import StageOutput
from spa_recipes.stages import extrapolate
from tests.kit.plans import plan_of, vllm_plan
from tests.kit.stages import context_of
from tests.kit.training import make_model, weights

MODEL = "model"


@pytest.fixture(scope="module")
def init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("init"), seed=1)


def stage(folder: Path, policy: Path, init: Path, factor: float, **model: Any) -> Path:
    settings = {"model": {"model_name_or_path": "x", **model}, "factor": factor}
    context = context_of(folder, "extrapolate", settings=settings, inputs={"policy": policy, "init": init})
    extrapolate.run(context)
    return context.draft / MODEL


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_every_weight_moves_on(policy: Path, init: Path, tmp_path: Path, factor: float) -> None:
    found = weights(stage(tmp_path, policy, init, factor))
    trained, start = weights(policy), weights(init)
    assert found.keys() == trained.keys()
    for name, tensor in found.items():
        slow = trained[name].double() + factor * (trained[name].double() - start[name].double())
        assert tensor.dtype == trained[name].dtype
        assert torch.allclose(tensor.double(), slow, rtol=1e-6, atol=1e-6)
        assert not torch.equal(tensor, trained[name]) or torch.equal(trained[name], start[name])


def stored(policy: Path, folder: Path, dtype: torch.dtype) -> Path:
    """The policy as a recipe in this precision stores it."""
    shutil.copytree(policy, folder)
    AutoModelForCausalLM.from_pretrained(policy, dtype=dtype).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_a_factor_it_is_the_policy_byte_for_byte(
    policy: Path, init: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    before = stored(policy, tmp_path / "stored", dtype)
    after = stage(tmp_path / "run", before, init, 0.0)
    assert (after / "model.safetensors").read_bytes() == (before / "model.safetensors").read_bytes()
    assert {tensor.dtype for tensor in weights(after).values()} == {dtype}


def test_half_precision_is_stored_as_a_trained_policy_is(policy: Path, init: Path, tmp_path: Path) -> None:
    """In the policy's precision, rounded by chance or to nearest as the recipe says, and the same bits each time."""
    before = stored(policy, tmp_path / "stored", torch.bfloat16)
    one, two = (weights(stage(tmp_path / name, before, init, 1.0)) for name in ("1", "2"))
    nearest = weights(stage(tmp_path / "3", before, init, 1.0, save_rounding="nearest"))
    trained, start = weights(before), weights(init)
    other = 0
    for name, tensor in one.items():
        exact = trained[name].float() + (trained[name].float() - start[name].float())
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, two[name])
        assert torch.equal(nearest[name], exact.bfloat16())
        assert ((tensor.float() - exact).abs() <= 2.0**-7 * exact.abs()).all()
        other += int((tensor != nearest[name]).sum())
    assert other > 100


def test_models_of_two_shapes_are_refused(policy: Path) -> None:
    trained = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
    other = copy.deepcopy(trained)
    other.lm_head.weight = torch.nn.Parameter(other.lm_head.weight[:-1].clone())
    with pytest.raises(StageError, match=r"final\.extrapolate.*differ in lm_head\.weight"):
        extrapolated(trained, other, 1.0)


# --- the plan


def test_it_is_the_last_policy_and_is_evaluated() -> None:
    method, plan = plan_of(), plan_of(final={"extrapolate": 1.5})
    added = [stage.id for stage in plan.stages if stage.id not in {other.id for other in method.stages}]
    assert added == ["extrapolate", "evaluate-extrapolated"]
    assert [s.key for s in plan.stages if s.id not in added] == [s.key for s in method.stages]
    own = plan.stage("extrapolate")
    assert own.role == "pi_2 + 1.5*(pi_2 - pi_init), in the weights"
    assert own.inputs == {"policy": StageOutput("refine-2", MODEL), "init": StageOutput("sft", MODEL)}
    assert plan.newest_model({stage.id for stage in plan.stages}) == own
    need = needs(own, plan)
    assert need.disk
    assert need.memory is not None
    assert need.memory.total == 3 * need.disk  # three models in float32


def test_without_iterations_it_is_pi_0_that_moves_on() -> None:
    plan = plan_of(final={"extrapolate": 1.0}, data={"prompts_per_iteration": []})
    assert plan.stage("extrapolate").inputs["policy"] == StageOutput("seed", MODEL)


def test_zero_adds_no_stage_and_moves_no_key() -> None:
    assert [s.key for s in plan_of(final={"extrapolate": 0.0}).stages] == [s.key for s in plan_of().stages]


def test_an_adapter_is_not_sampled_from_where_there_is_none() -> None:
    plan = vllm_plan(
        final={"extrapolate": 1.0}, model={"lora": {}}, sampling={"backend": {"type": "vllm", "lora": "adapter"}}
    )
    assert "adapter" in plan.stage("evaluate-1").inputs
    assert "adapter" not in plan.stage("evaluate-extrapolated").inputs
