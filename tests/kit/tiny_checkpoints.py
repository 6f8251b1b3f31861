"""Whole checkpoints of several families with random weights, and tokenizers that are trained on a few lines."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

TEXTS = ["the cat sat on the mat", "a dog and a cat met in 2024", "where is the hat of the cat ?", "über den Wolken"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3, QWEN2 = SPLIT % "{1,3}", SPLIT % ""
SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
}


def byte_level(split: str) -> Tokenizer:
    """Byte-level BPE that splits text by a regular expression, as Llama 3 and Qwen do."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(split), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXTS * 3, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    )
    return tokenizer


def sentencepiece() -> Tokenizer:
    """BPE with a space before each text and bytes to fall back on, as Llama 2 and Mistral have it."""
    space = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    learner.train_from_iterator(TEXTS * 3, trainers.BpeTrainer(vocab_size=70, show_progress=False))
    learned = json.loads(learner.to_str())["model"]
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += sorted(learned["vocab"], key=learned["vocab"].__getitem__)
    merges: list[tuple[str, str]] = [(first, second) for first, second in learned["merges"]]
    tokenizer = Tokenizer(
        models.BPE({word: i for i, word in enumerate(words)}, merges, unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.pre_tokenizer = space
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def checkpoint(
    folder: Path, family: str, tokenizer: Tokenizer, dtype: torch.dtype = torch.float32, **settings: Any
) -> Path:
    """A model of a family with its tokenizer, saved as transformers saves them."""
    ends: dict[str, Any] = (
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} if tokenizer.token_to_id("<s>") else {}
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **(ends or {"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]}),
    )
    wrapped.add_tokens(["<think>"])
    wrapped.chat_template = CHATML if not ends else CHATML.replace("<|im_end|>", "</s>")
    wrapped.save_pretrained(folder)
    own = {"vocab_size": len(wrapped) + 3, "eos_token_id": wrapped.eos_token_id, "bos_token_id": wrapped.bos_token_id}
    config = AutoConfig.for_model(family, **{**SHAPE, **own, "pad_token_id": None, **settings})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() == 1:  # norms and biases that are not what they begin as
            parameter.data += 0.1 * torch.arange(len(parameter)) / len(parameter)
    model.to(dtype).save_pretrained(folder)
    return folder
