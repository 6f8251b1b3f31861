"""The adapter that stays beside a merged model."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file

from spa_recipes.models.loading import load_causal_lm
from spa_recipes.recipe.schema import Lora
from spa_recipes.training.run import train_sft
from tests.kit.training import make_env, make_texts, supervised, weights


def test_an_adapter_stays_with_its_weights_and_names_nothing_of_this_disk(policy: Path, tmp_path: Path) -> None:
    env = replace(make_env(policy, tmp_path, lora=Lora(lora_r=4)), adapter_dir=tmp_path / "adapter")
    train_sft(policy, make_texts(16), supervised(), env)
    files = {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()}
    tokenizer = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert files.keys() == {"adapter_config.json", "adapter_model.safetensors", *tokenizer}
    for place in (tmp_path, policy):
        assert not any(str(place).encode() in content for content in files.values())
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] is None
    assert config["target_modules"] == sorted(config["target_modules"])
    assert load_file(tmp_path / "adapter" / "adapter_model.safetensors")


def test_the_merged_model_is_the_base_with_the_adapter(policy: Path, tmp_path: Path) -> None:
    env = replace(make_env(policy, tmp_path, lora=Lora(lora_r=4)), adapter_dir=tmp_path / "adapter")
    train_sft(policy, make_texts(16), supervised(), env)
    base = load_causal_lm(policy, env.model, torch.float32)
    again = PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload().state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in weights(env.output_dir).items())
