"""`spa export`: the file is read back by transformers, with the same logits, tokens and chat template."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from spa_recipes.errors import DataError, RecipeError, SpaError
from spa_recipes.export import gguf as export
from spa_recipes.export.gguf import export_gguf
from tests.kit.tiny_checkpoints import LLAMA3, QWEN2, TEXTS, byte_level, checkpoint, sentencepiece

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False},
    "mistral": {"sliding_window": None},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 128},  # what transformers takes for granted when it reads the file back
}
TOKENIZERS = {"llama": lambda: byte_level(LLAMA3), "mistral": sentencepiece}


def made(folder: Path, family: str, **settings: Any) -> Path:
    tokenizer = TOKENIZERS.get(family, lambda: byte_level(QWEN2))()
    return checkpoint(folder, family, tokenizer, **{**FAMILIES[family], **settings})


def field(path: Path, name: str) -> Any:
    return GGUFReader(path).fields[name].contents()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_transformers_reads_the_same_model_back(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    folder = made(tmp_path / "model", family, dtype=dtype)
    done = export_gguf(str(folder), f"tiny-{family}", tmp_path / "m.gguf")
    assert done.tensors == len(load_file(folder / "model.safetensors"))
    assert done.bytes == (tmp_path / "m.gguf").stat().st_size
    ours = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32).eval()
    ids = torch.arange(3, 43)[None] % ours.config.vocab_size
    with torch.no_grad():
        expected, found = ours(ids).logits, theirs(ids).logits
    assert expected.std() > 0.1
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.std()), rtol=0)

    one = AutoTokenizer.from_pretrained(folder)
    other = AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    for text in [*TEXTS, "<think>the cat", "12345 Ω"]:
        assert other(text, add_special_tokens=False)["input_ids"] == one(text, add_special_tokens=False)["input_ids"]
    assert other.chat_template == one.chat_template
    assert other.eos_token_id == one.eos_token_id
    assert field(tmp_path / "m.gguf", "tokenizer.ggml.eot_token_id") == one.eos_token_id
    assert field(tmp_path / "m.gguf", "tokenizer.ggml.add_bos_token") is False


def test_a_llama3_rotary_embedding_has_its_factors(tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 512}
    folder = made(tmp_path / "model", "llama", rope_parameters=rope, head_dim=32)
    export_gguf(str(folder), "m", tmp_path / "m.gguf")
    config = AutoConfig.from_pretrained(folder)
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 1.0 / (5e5 ** (torch.arange(0, 32, 2) / 32))
    (factors,) = [t.data for t in GGUFReader(tmp_path / "m.gguf").tensors if t.name == "rope_freqs.weight"]
    assert torch.allclose(torch.tensor(factors), plain / frequencies, rtol=1e-5)
    assert len(set(factors.tolist())) > 3


def test_a_window_of_the_attention_is_the_context(tmp_path: Path) -> None:
    folder = made(tmp_path / "model", "mistral", sliding_window=16)
    done = export_gguf(str(folder), "m", tmp_path / "m.gguf")
    assert (done.context, field(tmp_path / "m.gguf", "llama.context_length")) == (16, 16)
    assert "a window of 16 tokens" in done.notices[0]


def change(folder: Path, name: str, **values: Any) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_what_cannot_be_exported_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, out = made(tmp_path / "model", "llama"), tmp_path / "m.gguf"
    good = (folder / "config.json").read_text()

    def refused(kind: type[SpaError] = DataError) -> str:
        with pytest.raises(kind) as caught:
            export_gguf(str(folder), "m", out)
        assert not list(tmp_path.glob("*m.gguf*"))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    change(folder, "config.json", architectures=["GemmaForCausalLM"])
    assert "GemmaForCausalLM cannot be exported as GGUF here: that is for LlamaForCausalLM, Mistral" in refused()
    (folder / "config.json").write_text(good)
    for values, words in (
        ({"hidden_act": "gelu"}, "its activation is gelu"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "rotary embedding is dynamic",
        ),
        ({"vocab_size": 100}, "the model has embeddings for 100"),
        ({"quantization_config": {"quant_method": "gptq"}}, "stored quantised (gptq)"),
    ):
        change(folder, "config.json", **values)
        assert words in refused()
        (folder / "config.json").write_text(good)
    tokenizer = (folder / "tokenizer.json").read_text()
    change(folder, "tokenizer.json", pre_tokenizer={"type": "Whitespace"})
    assert "splits text in a way that llama.cpp has no name for" in refused()
    (folder / "tokenizer.json").write_text(tokenizer)
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    assert refused(RecipeError) == "the package gguf is not installed; pip install 'spa-recipes[gguf]'"
    monkeypatch.undo()
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text("{}")
    assert "only an adapter, without the model that it belongs to; merge it into its model first" in refused()


def test_the_command_says_what_it_wrote_and_what_to_do(spa_here: Any, tmp_path: Path) -> None:
    made(tmp_path / "model", "qwen2")
    done = spa_here("export", "model", "--format", "gguf")
    assert done.code == 0, done.err
    assert "context 128 tokens -> model.gguf" in done.out
    assert "`ollama create model -f Modelfile`" in done.out
    again = spa_here("export", "model")
    assert (again.code, again.err) == (
        2,
        "error: model.gguf: it is there already; choose another --out, or move it away\n",
    )
    assert spa_here("export", "model", "--format", "onnx").err == "error: --format: must be gguf, not 'onnx'\n"
