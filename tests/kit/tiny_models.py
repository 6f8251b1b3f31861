"""Models of every kind that are small enough to be checked token by token, with random weights."""

from typing import Any

import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCAB = 61
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 96,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
GPT2: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96, "initializer_range": 0.3}


def build(kind: str, *, attention: str | None = None) -> PreTrainedModel:
    """The same weights in every call; `attention` is an implementation of transformers, by default the kind's own."""
    torch.manual_seed(0)
    model, config = {
        "llama": (LlamaForCausalLM, LlamaConfig(**SHAPE)),
        "mistral": (MistralForCausalLM, MistralConfig(**SHAPE, sliding_window=7)),
        "wide mistral": (MistralForCausalLM, MistralConfig(**SHAPE, sliding_window=64)),
        "qwen3": (Qwen3ForCausalLM, Qwen3Config(**SHAPE, head_dim=8)),
        # layers with and without a window, soft-capped logits
        "gemma2": (Gemma2ForCausalLM, Gemma2Config(**SHAPE, head_dim=8, final_logit_softcapping=2.0, sliding_window=7)),
        "granite": (GraniteForCausalLM, GraniteConfig(**SHAPE, logits_scaling=3.0)),
        "cohere": (CohereForCausalLM, CohereConfig(**SHAPE, logit_scale=0.25)),
        "gpt2": (GPT2LMHeadModel, GPT2Config(vocab_size=VOCAB, **GPT2, bos_token_id=None, eos_token_id=None)),
    }[kind]
    if attention is not None:
        config._attn_implementation = attention
    return model(config).eval()


PROMPTS = [[3, 4, 5], [6], [7, 8]]
RESPONSES = [[9, 10], [11, 12, 13, 2], [2]]


def tiny_llama(seed: int = 0, vocabulary: int = 17) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=24,
        initializer_range=0.5,
        tie_word_embeddings=seed % 2 == 0,
    )
    return LlamaForCausalLM(config).eval()


def padded(prompts: list[list[int]], responses: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """input_ids and response mask, padded on the right with token 0."""
    rows = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
    width = max(map(len, rows))
    masks = [[0] * len(p) + [1] * len(r) for p, r in zip(prompts, responses, strict=True)]
    return (
        torch.tensor([row + [0] * (width - len(row)) for row in rows]),
        torch.tensor([mask + [0] * (width - len(mask)) for mask in masks]),
    )
