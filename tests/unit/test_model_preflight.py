"""What a model's small files say that would end a run later is told before it starts, in one line with the remedy."""

import json
from pathlib import Path
from typing import Any

import pytest

from spa_recipes.data.model_files import ModelFiles
from spa_recipes.errors import DataError, RecipeError
from spa_recipes.recipe.schema import Lora
from spa_recipes.run.model_preflight import (
    refuse_bidirectional,
    refuse_growing_positions,
    refuse_quantised,
    refuse_tied_adapter,
    refuse_unknown_tokens,
)
from tests.kit.models import model_folder

HERE = ModelFiles("here", None)
PHI3 = {
    "original_max_position_embeddings": 4096,
    "max_position_embeddings": 131072,
    "rope_scaling": {"type": "longrope"},
}
DYNAMIC = {"max_position_embeddings": 4096, "rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}
LAYERED = {"rope_parameters": {"full_attention": {"rope_type": "longrope", "original_max_position_embeddings": 4096}}}


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "fp8"])
def test_a_quantised_checkpoint_is_refused(method: str) -> None:
    config = {"quantization_config": {"quant_method": method, "bits": 4}}
    for one in (config, {"text_config": config}):
        with pytest.raises(DataError, match=rf"stored quantised \({method}\); give the model that it was made from"):
            refuse_quantised(HERE, one)
    refuse_quantised(HERE, {"model_type": "llama"})


@pytest.mark.parametrize("value", [True, "all"])
def test_bidirectional_attention_is_refused(value: Any) -> None:
    with pytest.raises(DataError, match="no causal language model"):
        refuse_bidirectional(HERE, {"text_config": {"use_bidirectional_attention": value}})
    refuse_bidirectional(HERE, {"use_bidirectional_attention": "vision"})


@pytest.mark.parametrize("config", [PHI3, DYNAMIC, LAYERED, {"text_config": PHI3}])
def test_positions_that_grow_with_a_text_are_refused_where_they_would(config: dict[str, Any]) -> None:
    refuse_growing_positions(HERE, config, "model.max_length", 4096)
    with pytest.raises(RecipeError, match=r"model.max_length \(4097\) is more than 4096.*set model.max_length to 4096"):
        refuse_growing_positions(HERE, config, "model.max_length", 4097)


def test_other_positions_are_taken(tmp_path: Path) -> None:
    yarn = {"max_position_embeddings": 32768, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}
    for config in (yarn, {"max_position_embeddings": 10}, {"rope_scaling": None}):
        refuse_growing_positions(HERE, config, "model.max_length", 100_000)


@pytest.mark.parametrize(
    ("settings", "words", "fault"),
    [
        ({"pad_token": "[PAD]"}, {"a": 0, "[PAD]": 4}, None),
        ({"pad_token": {"content": "[PAD]"}}, {"a": 0, "[PAD]": 4}, None),
        ({}, {"<image>": 4}, None),
        ({"eos_token": "<end>"}, {"<end>": 4}, "<end> is 4, and there are 4"),
        ({"pad_token": "<end>", "eos_token": "<end>"}, {"<end>": 4}, "<end> is 4"),
        ({}, {"<|im_start|>": 5, "<|im_end|>": 6}, r"<\|im_start\|> is 5"),
        ({}, {"<turn>": 4}, "<turn> is 4"),
        ({}, {"<|assistant|>": 3}, None),
    ],
)
def test_tokens_beyond_the_embeddings(
    settings: dict[str, Any], words: dict[str, int], fault: str | None, tmp_path: Path
) -> None:
    files = ModelFiles(str(model_folder(tmp_path / "m", tokenizer_config__json=json.dumps(settings))), None)
    for config in ({"vocab_size": 4}, {"text_config": {"vocab_size": 4}}):
        if fault is None:
            refuse_unknown_tokens(files, config, words, "<turn>{{ messages }}")
        else:
            with pytest.raises(DataError, match=f"no embedding for: {fault}.*resize_token_embeddings"):
                refuse_unknown_tokens(files, config, words, "<turn>{{ messages }}")


def test_an_adapter_on_tied_embeddings_is_refused() -> None:
    lora = Lora(lora_target_modules=["q_proj", "model.embed_tokens"])
    with pytest.raises(RecipeError, match="embed_tokens is the output layer, too"):
        refuse_tied_adapter(HERE, {"tie_word_embeddings": True}, lora)
    refuse_tied_adapter(HERE, {"tie_word_embeddings": False}, lora)
    refuse_tied_adapter(HERE, {"tie_word_embeddings": True}, Lora(lora_target_modules=["q_proj"]))
    refuse_tied_adapter(HERE, {"tie_word_embeddings": True}, None)
