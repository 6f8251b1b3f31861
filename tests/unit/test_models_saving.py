"""The one saver: weights in the wanted precision, and the configurations of the model before the training."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from spa_recipes.models.loading import load_causal_lm
from spa_recipes.models.saving import save_model
from spa_recipes.recipe.schema import Model
from tests.kit.training import make_model, weights


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose output layer is tied to its embeddings."""
    return make_model(tmp_path_factory.mktemp("source"))


def save(source: Path, folder: Path, model: PreTrainedModel, dtype: torch.dtype) -> Path:
    settings = Model(model_name_or_path=str(source))
    tokenizer = AutoTokenizer.from_pretrained(source)
    save_model(model, model.state_dict(), tokenizer, folder, source=source, settings=settings, dtype=dtype)
    return folder


def load(folder: Path) -> PreTrainedModel:
    return load_causal_lm(folder, Model(model_name_or_path=str(folder)), torch.float32)


def test_what_is_saved_unchanged_is_the_source_byte_by_byte(source: Path, tmp_path: Path) -> None:
    save(source, tmp_path / "out", load(source), torch.float32)
    assert {path.name for path in source.iterdir()} == {path.name for path in (tmp_path / "out").iterdir()}
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "out" / name).read_text()) == json.loads((source / name).read_text())


def test_weights_and_config_have_the_wanted_precision(source: Path, tmp_path: Path) -> None:
    saved = save(source, tmp_path / "out", load(source), torch.bfloat16)
    assert all(torch.equal(tensor.bfloat16(), weights(saved)[name]) for name, tensor in weights(source).items())
    assert "lm_head.weight" not in weights(saved)  # the cast keeps tied tensors one
    assert AutoModelForCausalLM.from_pretrained(saved, dtype="auto").dtype == torch.bfloat16


def test_what_a_trainer_wrote_into_the_configurations_is_not_saved(source: Path, tmp_path: Path) -> None:
    model = load(source)
    model.config.pad_token_id, model.config.use_cache = 77, False
    model.generation_config = GenerationConfig(eos_token_id=77)
    saved = save(source, tmp_path / "out", model, torch.float32)
    for name in ("config.json", "generation_config.json"):
        assert json.loads((saved / name).read_text()) == json.loads((source / name).read_text())
