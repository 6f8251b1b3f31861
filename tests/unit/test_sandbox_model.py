"""The tiny model and its tokenizer load like any other, and lose nothing of the world's text."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from spa_recipes.sandbox.model import build_model
from spa_recipes.sandbox.rows import sft_rows
from spa_recipes.sandbox.world import all_prompts, vocabulary

QUESTION = {"role": "user", "content": "tell me an old story about tea ."}
ANSWER = {"role": "assistant", "content": "once a fox stole the hot kettle ."}
FOLLOW_UP = {"role": "user", "content": "what should i buy for chess ?"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sandbox") / "model"
    build_model(out)
    return out


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


def test_text_survives_the_tokenizer(tokenizer: Any) -> None:
    texts = [*all_prompts()[::7], *(row["messages"][1]["content"] for row in sft_rows(300, seed=3))]
    for text, ids in zip(texts, tokenizer(texts).input_ids, strict=True):
        assert len(ids) == len(text.split())
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_special_tokens(tokenizer: Any) -> None:
    assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.unk_token) == ("<pad>", "<end>", "<unk>")
    assert tokenizer.bos_token is None
    assert len(tokenizer) == len(vocabulary()) + 5
    ids = tokenizer("<user>boats<end><assistant>dragons <pad>").input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == ["<user>", "boats", "<end>", "<assistant>", "<unk>", "<pad>"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "boats"


def test_chat_template_of_a_long_conversation(tokenizer: Any) -> None:
    text = tokenizer.apply_chat_template([QUESTION, ANSWER, FOLLOW_UP], tokenize=False, add_generation_prompt=True)
    assert text == (
        "<user>tell me an old story about tea .<end>"
        "<assistant>once a fox stole the hot kettle .<end>"
        "<user>what should i buy for chess ?<end><assistant>"
    )


def test_prompt_is_a_prefix_of_the_conversation(tokenizer: Any) -> None:
    prompt = tokenizer.apply_chat_template([QUESTION], add_generation_prompt=True)["input_ids"]
    whole = tokenizer.apply_chat_template([QUESTION, ANSWER])["input_ids"]
    reply = tokenizer(ANSWER["content"] + "<end>").input_ids
    assert whole == prompt + reply
    assert whole[-1] == tokenizer.eos_token_id


def test_chat_template_refuses_other_roles(tokenizer: Any) -> None:
    with pytest.raises(Exception, match="not system"):
        tokenizer.apply_chat_template([{"role": "system", "content": "be kind ."}])


def test_model_loads(folder: Path, tokenizer: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert 250_000 <= model.num_parameters() <= 320_000
    assert model.dtype == torch.float32
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert 0.055 < model.get_input_embeddings().weight.std() < 0.065
    config, generation = model.config, GenerationConfig.from_pretrained(folder)
    assert config.vocab_size == len(tokenizer)
    assert config.max_position_embeddings == tokenizer.model_max_length == 256
    assert config.bos_token_id is generation.bos_token_id is None
    assert config.eos_token_id == generation.eos_token_id == tokenizer.eos_token_id
    assert config.pad_token_id == generation.pad_token_id == tokenizer.pad_token_id
    assert (folder / "model.safetensors").is_file()


def test_model_generates(folder: Path, tokenizer: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template([QUESTION], add_generation_prompt=True, return_tensors="pt")
    out = model.generate(**prompt, max_new_tokens=4, do_sample=False)
    assert out.shape[1] <= prompt["input_ids"].shape[1] + 4


def test_weights_follow_the_seed_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    build_model(tmp_path / "again")
    assert torch.equal(torch.get_rng_state(), state)
    build_model(tmp_path / "other", seed=1)
    weights = [(path / "model.safetensors").read_bytes() for path in (folder, tmp_path / "again", tmp_path / "other")]
    assert weights[0] == weights[1] != weights[2]


def test_size_can_be_chosen(tmp_path: Path) -> None:
    build_model(tmp_path, hidden_size=32, num_layers=1, num_heads=2, intermediate_size=64, initializer_range=0.02)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.num_parameters() < 40_000
    assert model.config.num_attention_heads == 2
