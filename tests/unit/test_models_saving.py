"""The one saver: weights in the wanted precision, and the configurations of the model before the training."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from spa_recipes.errors import StageError
from spa_recipes.models.loading import load_causal_lm
from spa_recipes.models.rounding import stochastic
from spa_recipes.models.saving import Weights, save_model
from spa_recipes.models.weight_files import exact_dtype
from spa_recipes.recipe.schema import Model
from tests.kit.training import make_model, weights


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose output layer is tied to its embeddings."""
    return make_model(tmp_path_factory.mktemp("source"))


def save(
    source: Path,
    folder: Path,
    model: PreTrainedModel,
    dtype: torch.dtype,
    *,
    weights: Weights | None = None,
    **settings: Any,
) -> dict[str, float]:
    """Save a model, or other weights of it; returns what the saved model keeps of the update."""
    return save_model(
        model,
        weights or Weights(model.state_dict()),
        AutoTokenizer.from_pretrained(source),
        folder,
        source=source,
        settings=Model(model_name_or_path=str(source), **settings),
        dtype=dtype,
        key="k",
    )


def load(folder: Path) -> PreTrainedModel:
    return load_causal_lm(folder, Model(model_name_or_path=str(folder)), torch.float32)


def test_what_is_saved_unchanged_is_the_source_byte_by_byte(source: Path, tmp_path: Path) -> None:
    save(source, tmp_path / "out", load(source), torch.float32)
    assert {path.name for path in source.iterdir()} == {path.name for path in (tmp_path / "out").iterdir()}
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "out" / name).read_text()) == json.loads((source / name).read_text())


def test_weights_and_config_have_the_wanted_precision(source: Path, tmp_path: Path) -> None:
    saved = tmp_path / "out"
    save(source, saved, load(source), torch.bfloat16, save_rounding="nearest")
    assert all(torch.equal(tensor.bfloat16(), weights(saved)[name]) for name, tensor in weights(source).items())
    assert "lm_head.weight" not in weights(saved)  # the cast keeps tied tensors one
    assert AutoModelForCausalLM.from_pretrained(saved, dtype="auto").dtype == torch.bfloat16


def test_what_a_trainer_wrote_into_the_configurations_is_not_saved(source: Path, tmp_path: Path) -> None:
    model = load(source)
    model.config.pad_token_id, model.config.use_cache = 77, False
    model.generation_config = GenerationConfig(eos_token_id=77)
    saved = tmp_path / "out"
    save(source, saved, model, torch.float32)
    for name in ("config.json", "generation_config.json"):
        assert json.loads((saved / name).read_text()) == json.loads((source / name).read_text())


@pytest.mark.parametrize(
    ("dtype", "digest"),
    [
        (torch.float32, "285e98dc04fd341cf39c6aaf0334d264390c46fc6e48d966ec611206cdfedfbf"),
        (torch.bfloat16, "a103b47a62cd354fa481db5c3402d1d9e8d461c71b79e892ebe19b75c3cb97e3"),
        (torch.float16, "7a8b16aac33905804f7cd1a5235623bbdf8b8eb3dc192c12fadd7e4d033b481e"),
    ],
)
def test_in_float32_and_to_nearest_the_bytes_are_those_of_the_saver_without_rounding(
    source: Path, tmp_path: Path, dtype: torch.dtype, digest: str
) -> None:
    """The digests are of what the code before `save_rounding` wrote for the same weights."""
    model = load(source)
    with torch.no_grad():
        for seed, weight in enumerate(model.parameters()):
            numbers = (torch.arange(weight.numel()) + seed) * 7919 % 10007
            weight.copy_((numbers.float() / 10007 - 0.5).reshape(weight.shape))
    save(source, tmp_path / "out", model, dtype, save_rounding=None if dtype == torch.float32 else "nearest")
    assert hashlib.sha256((tmp_path / "out" / "model.safetensors").read_bytes()).hexdigest() == digest


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_weights_are_rounded_by_key_and_name_and_tied_ones_stay_tied(
    source: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    save(source, tmp_path / "out", load(source), dtype)
    before, after = weights(source), weights(tmp_path / "out")
    assert before.keys() == after.keys()
    assert "lm_head.weight" not in after
    for name, tensor in before.items():
        assert torch.equal(after[name], stochastic(tensor, dtype, key="k", name=name))
    assert any(not torch.equal(after[name], tensor.to(dtype)) for name, tensor in before.items())


def test_a_sharded_models_two_copies_of_a_tied_tensor_give_the_same_bytes(source: Path, tmp_path: Path) -> None:
    model = load(source)
    copies = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert "lm_head.weight" in copies
    save(source, tmp_path / "whole", model, torch.bfloat16)
    save(source, tmp_path / "sharded", model, torch.bfloat16, weights=Weights(copies))
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "sharded")]
    assert files[0] == files[1]


def test_what_is_kept_of_an_update_is_measured_against_the_start(source: Path, tmp_path: Path) -> None:
    """A model of bfloat16 whose weights moved by a tenth of a unit in the last place."""
    model = load(source)
    start = {name: tensor.bfloat16().float() for name, tensor in model.state_dict().items()}
    trained = {name: tensor * (1 + 2**-8 / 10) for name, tensor in start.items()}
    for rounding, low, high in (("stochastic", 0.7, 1.3), ("nearest", 0.0, 0.0)):
        kept = save(
            source,
            tmp_path / "out",
            model,
            torch.bfloat16,
            weights=Weights(dict(trained), start=start),
            save_rounding=rounding,
        )
        assert low <= kept["update_kept"] <= high
        assert kept["update_visible"] == 0.0
    assert save(source, tmp_path / "out", model, torch.float32) == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_with_nan_are_refused_by_name(source: Path, tmp_path: Path, dtype: torch.dtype, value: float) -> None:
    model = load(source)
    with torch.no_grad():
        model.model.norm.weight[3] = value
    with pytest.raises(StageError, match=r"weights of model\.norm\.weight are NaN or infinite") as refused:
        save(source, tmp_path / "out", model, dtype)
    assert refused.value.fix
    assert not (tmp_path / "out").exists()


def test_weights_that_float16_cannot_hold_are_refused_by_name(source: Path, tmp_path: Path) -> None:
    model = load(source)
    with torch.no_grad():
        model.model.norm.weight[3] = -7e4
    with pytest.raises(StageError, match=r"model\.norm\.weight go up to 7e\+04, too large for float16"):
        save(source, tmp_path / "out", model, torch.float16)


def test_a_start_is_loaded_in_the_least_precision_that_keeps_it(tmp_path: Path) -> None:
    for name, tensors in {
        "half": {"a": torch.ones(2, dtype=torch.bfloat16), "b": torch.ones(3, dtype=torch.bfloat16)},
        "mixed": {"a": torch.ones(2, dtype=torch.bfloat16), "b": torch.ones(3)},
        "whole": {"a": torch.ones(2)},
    }.items():
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
        expected = torch.bfloat16 if name == "half" else torch.float32
        assert exact_dtype(tmp_path / name) == expected
    assert exact_dtype("a/model-of-the-hub") == torch.float32
