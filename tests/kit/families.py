"""Tiny random models of many architectures, from their configurations."""

import warnings
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

WITH_DROPOUT = (
    "apertus", "arcee", "aria_text", "bart", "biogpt", "bloom", "cohere", "cohere2", "exaone4", "gemma",
    "gemma2", "gemma3_text", "glm", "glm4", "gpt-sw3", "gpt2", "gpt_bigcode", "gpt_neox", "gptj", "granite",
    "granitemoe", "helium", "jetmoe", "llama", "ministral", "mistral", "mixtral", "nemotron", "olmo", "olmo2", "olmo3",
    "openai-gpt", "opt", "persimmon", "phi", "phi3", "qwen2", "qwen3", "seed_oss", "smollm3", "stablelm", "starcoder2",
    "xglm",
)  # fmt: skip
"""`model_type` of families whose configuration has some dropout or jitter."""

_TINY = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"), 16),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads"), 2),
    **dict.fromkeys(("num_key_value_heads", "num_local_experts", "num_experts"), 2),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "n_inner"), 24),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 128),
    **{"head_dim": 8, "rotary_dim": 4, "encoder_layers": 1, "moe_intermediate_size": 8},
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),
}


def tiny(family: str, vocabulary: int, **settings: Any) -> PreTrainedModel:
    """A random model; settings that its family does not have are left out of what makes it tiny."""
    transformers_logging.set_verbosity_error()
    known = AutoConfig.for_model(family)
    sizes = {name: value for name, value in _TINY.items() if hasattr(known, name)}
    config = AutoConfig.for_model(family, **{**sizes, "vocab_size": vocabulary, **settings})
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model.eval()


def chances(family: str) -> dict[str, float]:
    """The family's settings of dropout and jitter, all at 0.3."""
    names = AutoConfig.for_model(family).to_dict().items()
    return {
        name: 0.3
        for name, value in names
        if any(part in name for part in ("drop", "jitter"))
        and (value is None or (isinstance(value, int | float) and not isinstance(value, bool)))
    }
