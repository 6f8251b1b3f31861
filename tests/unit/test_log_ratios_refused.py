"""Two models whose log-ratios cannot be computed: one line that says which and what."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BloomConfig, BloomForCausalLM

from spa_recipes.data.tables import given_answer, write_completions
from spa_recipes.errors import StageError
from spa_recipes.generation import tangent
from spa_recipes.generation.scoring import score
from spa_recipes.models.forward_mode import make_dual, unpack
from spa_recipes.sandbox.model import build_model
from spa_recipes.stages import log_ratios as stage
from tests.kit.half import half_inputs
from tests.kit.stages import context_of
from tests.kit.updates import moved, random_update

Inputs = dict[str, Path]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """Two models and two answers to each of four prompts."""
    folder = tmp_path_factory.mktemp("world")
    half_inputs(folder, pairs=1)
    rows = [given_answer(i, f"p{i}", k, "", [5, 6, 7 + i], [8 + 3 * k + i] * 6) for i in range(4) for k in range(2)]
    write_completions(folder / "completions.parquet", rows)
    names = {"policy": "policy", "reference": "reference", "completions": "completions.parquet"}
    return {role: folder / name for role, name in names.items()}


def context(folder: Path, inputs: Inputs, method: str) -> Any:
    model = {"model_name_or_path": "m", "dtype": "bfloat16", "max_length": 128, "max_prompt_length": 48}
    return context_of(folder / method, "log_ratios", settings={"model": model, "method": method}, inputs=inputs)


def refusal(folder: Path, inputs: Inputs, method: str = "tangent") -> str:
    """The one line about a stage that stops and leaves no log-ratio."""
    here = context(folder, inputs, method)
    with pytest.raises(StageError) as caught:
        stage.run(here)
    assert "\n" not in str(caught.value)
    assert not [*here.work.glob("shards/*/*.parquet"), *here.draft.iterdir()]
    return str(caught.value)


@pytest.mark.parametrize("role", ["policy", "reference"])
def test_a_weight_that_is_no_number_is_named_with_its_model_by_every_method(
    world: Inputs, tmp_path: Path, role: str
) -> None:
    broken = Path(shutil.copytree(world[role], tmp_path / "broken"))
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    for method in ("auto", "difference", "tangent"):
        line = refusal(tmp_path, {**world, role: broken}, method)
        assert line.startswith(f"{broken}: the weight model.layers.1.mlp.up_proj.weight is infinite or NaN in ")


def test_an_architecture_without_forward_mode_is_refused_by_its_operation_and_subtracted_under_auto(
    world: Inputs, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=400, hidden_size=32, n_layer=1, n_head=4)
    reference = BloomForCausalLM(config).eval()
    models = {"reference": reference, "policy": moved(reference, random_update(reference, 1e-3))}
    for role, model in models.items():
        model.bfloat16().save_pretrained(tmp_path / role)
    inputs = {**world, **{role: tmp_path / role for role in models}}
    named = "GeLUFunction has no derivative in forward mode"
    assert named in refusal(tmp_path, inputs)
    metrics = stage.run(context(tmp_path, inputs, "auto")).metrics
    assert metrics["method"] == "difference in float32"
    assert f"tangent in bfloat16: {named}" in metrics["why"]


@pytest.mark.parametrize(
    ("made", "what"),
    [
        (lambda value, derivative: value, "of the log-probs is missing"),
        (lambda value, derivative: make_dual(value, torch.zeros_like(derivative)), "of item 0 is exactly 0"),
    ],
    ids=["missing", "zero"],
)
def test_a_tangent_that_is_missing_or_exactly_zero_stops_the_stage(
    world: Inputs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    made: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    what: str,
) -> None:
    monkeypatch.setattr(tangent, "make_dual", made)
    line = refusal(tmp_path, world)
    assert line.startswith(f"the derivative along the update {what}: the model has an operation that carries none")


def test_hidden_states_without_a_tangent_stop_the_stage(
    world: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from fused products, which give values and no tangents without an error."""

    def without(model: Any, items: Any, rule: Any, *rest: Any) -> Any:
        def of_values(hidden_ND: torch.Tensor, *more: Any) -> torch.Tensor:
            values: torch.Tensor = rule.token_logps(unpack(hidden_ND)[0], *more)
            return values

        return score(model, items, rule._replace(token_logps=of_values), *rest)

    monkeypatch.setattr(tangent, "score", without)
    assert "the derivative along the update of the hidden states is missing" in refusal(tmp_path, world)


@pytest.mark.parametrize(
    ("shape", "what"),
    [
        ({"num_layers": 1}, "only the reference has model.layers.1."),
        ({"intermediate_size": 48}, "different shapes: model.layers.0.mlp."),
    ],
)
def test_models_of_two_shapes_are_refused(world: Inputs, tmp_path: Path, shape: dict[str, int], what: str) -> None:
    build_model(tmp_path / "other", seed=1, **shape)
    assert what in refusal(tmp_path, {**world, "policy": tmp_path / "other"})
    # Two log-probs can be subtracted, whatever the models are made of.
    metrics = stage.run(context(tmp_path, {**world, "policy": tmp_path / "other"}, "auto")).metrics
    assert metrics["method"].startswith("difference")
