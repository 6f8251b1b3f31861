"""The one loader: a model is loaded whole, or refused with the names of the tensors that do not fit."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from spa_recipes.errors import DataError, RecipeError, TryAgainError
from spa_recipes.models import loading
from spa_recipes.models.loading import for_inference, load_causal_lm, load_reward_model
from spa_recipes.recipe.schema import Model
from tests.kit.tiny_models import SHAPE, build

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved Llama whose output layer is a tensor of its own."""
    build("llama").save_pretrained(tmp_path)
    return tmp_path


def change(folder: Path, changes: Callable[[Tensors], Tensors]) -> Path:
    """Write other tensors into the folder."""
    file = folder / "model.safetensors"
    save_file(changes(load_file(file)), file, metadata={"format": "pt"})
    return folder


def change_config(folder: Path, **changes: Any) -> None:
    """Write other values into config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def without(*names: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}


def load(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return load_causal_lm(folder, Model(model_name_or_path=str(folder)), dtype)


def load_rewarder(folder: Path, new_head: bool = False) -> PreTrainedModel:
    return load_reward_model(folder, Model(model_name_or_path=str(folder)), torch.float32, new_head=new_head)


def new_rewarder(folder: Path) -> PreTrainedModel:
    return load_rewarder(folder, new_head=True)


def refused(folder: Path, load: Callable[[Path], Any] = load) -> DataError:
    """The error of a load that is refused in one line that names the folder."""
    with pytest.raises(DataError, match=rf"\A{re.escape(str(folder))}: [^\n]*\Z") as caught:
        load(folder)
    return caught.value


def test_a_whole_model_loads_as_it_was_saved(folder: Path) -> None:
    model = load(folder)
    assert not model.training
    assert model.device.type == "cpu"
    saved = build("llama").state_dict()
    assert all(torch.equal(saved[name], tensor) for name, tensor in model.state_dict().items())
    assert load(folder, torch.bfloat16).dtype == torch.bfloat16


def test_for_inference_takes_the_precision_of_the_recipe(folder: Path) -> None:
    settings = Model(model_name_or_path=str(folder), revision="ignored for a folder")
    assert for_inference(load_causal_lm, settings.model_copy(update={"dtype": "float32"})).dtype == torch.float32
    assert for_inference(load_causal_lm, settings.model_copy(update={"dtype": "bfloat16"})).dtype == torch.bfloat16


def test_a_tensor_that_is_missing_is_named(folder: Path) -> None:
    error = refused(change(folder, without("model.norm.weight")))
    assert "do not fit LlamaForCausalLM: the weights of model.norm.weight are missing" in error.what
    assert "save the whole model again" in error.fix


def test_an_output_layer_that_is_missing_is_refused_unless_it_is_tied(folder: Path, tmp_path: Path) -> None:
    assert "lm_head.weight are missing" in refused(change(folder, without("lm_head.weight"))).what
    tied = LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True))
    tied.save_pretrained(tmp_path / "tied")
    assert "lm_head.weight" not in load_file(tmp_path / "tied" / "model.safetensors")
    assert torch.equal(load(tmp_path / "tied").lm_head.weight, tied.model.embed_tokens.weight)

    def both(tensors: Tensors) -> Tensors:
        return {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}

    assert torch.equal(load(change(tmp_path / "tied", both)).lm_head.weight, tied.model.embed_tokens.weight)


@pytest.mark.parametrize("prefix", ["module.", "base_model.model.", "_orig_mod."])
def test_names_with_a_prefix_are_refused_and_the_prefix_is_named(folder: Path, prefix: str) -> None:
    """Training wrappers write such names; without the check all weights would be random."""
    change(folder, lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()})
    for loader in (load, new_rewarder):
        error = refused(folder, loader)
        assert re.search(r"model\.layers\.0\.\S+ and \d+ more are missing", error.what)
        assert f"the names begin with `{prefix}`" in error.fix


def test_a_tensor_that_belongs_to_nothing_is_named(folder: Path) -> None:
    error = refused(change(folder, lambda tensors: {**tensors, "v_head.summary.weight": torch.zeros(1, 32)}))
    assert "the weights of v_head.summary.weight are unexpected" in error.what


def test_a_tensor_of_another_shape_is_named_with_both_shapes(folder: Path) -> None:
    change_config(folder, vocab_size=67)
    error = refused(folder)
    assert "lm_head.weight is [61, 32] and should be [67, 32]" in error.what
    assert "config.json" in error.fix


def test_weights_of_more_layers_than_the_config_says_are_refused(folder: Path) -> None:
    change_config(folder, num_hidden_layers=1)
    assert "the weights of model.layers.1.input_layernorm.weight" in refused(folder).what


# --- reward models


def test_a_policy_becomes_a_reward_model_only_where_a_new_head_is_wanted(folder: Path) -> None:
    model = new_rewarder(folder)
    assert model.score.weight.shape == (1, 32)
    saved = build("llama").model.state_dict()
    assert all(torch.equal(saved[name], tensor) for name, tensor in model.model.state_dict().items())
    assert "one output (num_labels 1), not 2" in refused(folder, load_rewarder).what
    change_config(folder, id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0})
    error = refused(folder, load_rewarder)
    assert "the weights of score.weight are missing" in error.what
    assert "not a language model" in error.fix


def test_a_new_head_excuses_nothing_of_the_body(folder: Path) -> None:
    change(folder, without("model.norm.weight"))
    assert "model.norm.weight" in refused(folder, new_rewarder).what


def test_a_whole_reward_model_loads_and_is_no_language_model(folder: Path, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    model.save_pretrained(tmp_path / "rewarder")
    for loader in (load_rewarder, new_rewarder):
        assert torch.equal(loader(tmp_path / "rewarder").score.weight, model.score.weight)
    error = refused(tmp_path / "rewarder")
    assert "lm_head.weight are missing" in error.what
    assert "score.weight are unexpected" in error.what
    assert "not a reward model" in error.fix


def test_an_architecture_without_a_reward_form_is_refused(tmp_path: Path) -> None:
    build("granite").save_pretrained(tmp_path)
    error = refused(tmp_path, new_rewarder)
    assert "cannot load a model" in error.what
    assert "judge.model_name_or_path" in error.fix


# --- what is no model at all


def test_what_is_no_model_is_a_data_error(tmp_path: Path) -> None:
    assert "no such model folder" in refused(tmp_path / "nothing").what
    assert "cannot load a model" in refused(tmp_path).what
    build("llama").config.save_pretrained(tmp_path)
    assert "cannot load a model" in refused(tmp_path).what
    (tmp_path / "model.safetensors").write_bytes(b"cut off")
    assert "cannot load a model" in refused(tmp_path).what


def test_a_hub_out_of_reach_is_told_apart_from_a_model_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")

    def unreachable(name: str, **options: Any) -> Any:
        assert (name, options["revision"]) == ("owner/model", "main")
        raise OSError("We couldn't connect to the Hub") from ConnectionError("no route")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", unreachable)
    with pytest.raises(TryAgainError, match="the Hub cannot be reached"):
        load_causal_lm("owner/model", Model(model_name_or_path="owner/model", revision="main"), torch.float32)


def test_the_revision_is_that_of_the_model_that_the_recipe_names(tmp_path: Path) -> None:
    settings = Model(model_name_or_path="owner/model", revision="abc")
    assert loading.revision_of("owner/model", settings) == "abc"
    assert loading.revision_of("owner/other", settings) is None
    assert loading.revision_of(tmp_path, Model(model_name_or_path=str(tmp_path), revision="abc")) is None


def test_memory_that_runs_out_while_loading_says_what_helps(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(TryAgainError, match=r"out of memory while the model was loaded; .*model\.dtype"):
        for_inference(load_causal_lm, Model(model_name_or_path=str(folder)))
    with pytest.raises(RuntimeError, match="can't allocate"):  # the stage that trains knows what helps
        load(folder)


def test_four_bits_need_bitsandbytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.utils.is_bitsandbytes_available", lambda: False)
    with pytest.raises(RecipeError, match=r"load_in_4bit: .* need bitsandbytes.*spa-recipes\[qlora\]"):
        load_causal_lm(folder, Model(model_name_or_path=str(folder)), torch.float32, in_4bit=True)
