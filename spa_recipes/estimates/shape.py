"""The sizes of a decoder that decide what it needs: from its config.json, or from its number of parameters alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from spa_recipes.recipe.schema import Lora

if TYPE_CHECKING:
    from spa_recipes.recipe.jobs import AnyRecipe

SANDBOX_PARAMETERS = 284_544


class Shape(NamedTuple):
    """A Llama-like decoder: attention with grouped heads, gated feed-forward, norms, embeddings.

    Attributes:
        parameters: all of them.
        layers, width, inner: number of layers, and the widths of their states and of their feed-forward.
        query, key: widths of all query heads and of all key heads together.
        heads: query heads.
        words: size of the vocabulary.
        active: parameters that a token passes through; fewer than all of them where there are experts.
    """

    parameters: int
    layers: int
    width: int
    inner: int
    query: int
    key: int
    heads: int
    words: int
    active: int

    @property
    def layer_parameters(self) -> int:
        """Weights of one layer's products."""
        return self.width * (2 * self.query + 2 * self.key) + 3 * self.width * self.inner

    @property
    def embedding_parameters(self) -> int:
        """Embeddings and output layer, which may be one matrix."""
        return max(0, self.parameters - self.layers * self.layer_parameters)

    def adapter_parameters(self, lora: Lora) -> int:
        """Weights of LoRA adapters on every layer."""
        sides = {
            "q_proj": self.width + self.query,
            "k_proj": self.width + self.key,
            "v_proj": self.width + self.key,
            "o_proj": self.query + self.width,
            **dict.fromkeys(("gate_proj", "up_proj", "down_proj"), self.width + self.inner),
        }
        wanted = lora.lora_target_modules
        one = sum(size for name, size in sides.items() if wanted == "all-linear" or name in wanted)
        return self.layers * lora.lora_r * one


def shape_of(recipe: AnyRecipe) -> Shape | None:
    """The shape of a recipe's model: from its config.json on this disk, from the sandbox, or from `num_parameters`.

    With `num_parameters` alone it is that of a well-known model of about that size.
    """
    model = recipe.model
    found = _SANDBOX if model.is_sandbox else _on_disk(Path(model.model_name_or_path).expanduser())
    if model.num_parameters is None:
        return found
    stated = int(model.num_parameters)
    return _of_size(stated) if found is None else found._replace(parameters=stated)


def parameters_of(recipe: AnyRecipe) -> int | None:
    """Number of parameters of a recipe's model; None where nothing says it."""
    shape = shape_of(recipe)
    return None if shape is None else shape.parameters


def _on_disk(folder: Path) -> Shape | None:
    try:
        return shape_of_config(json.loads((folder / "config.json").read_text()))
    except (OSError, ValueError):
        return None


def shape_of_config(config: Mapping[str, Any]) -> Shape | None:
    """The shape that a config.json describes; None where it does not."""
    try:
        return _of_config(config.get("text_config", config))
    except (KeyError, TypeError, AttributeError, ZeroDivisionError):
        return None


def _of_config(config: Mapping[str, Any]) -> Shape:
    width, layers, heads = config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"]
    head = config.get("head_dim") or width // heads
    query, key = heads * head, (config.get("num_key_value_heads") or heads) * head
    experts = config.get("num_local_experts") or config.get("num_experts") or 1
    chosen = min(experts, config.get("num_experts_per_tok") or 1)
    inner = (config.get("moe_intermediate_size") if experts > 1 else None) or config["intermediate_size"]
    words = config["vocab_size"]
    rest = words * width * (1 if config.get("tie_word_embeddings") else 2) + width
    attention = width * (2 * query + 2 * key) + 2 * width
    all_of, active = (layers * (attention + 3 * width * inner * n) + rest for n in (experts, chosen))
    return Shape(all_of, layers, width, inner * chosen, query, key, heads, words, active)


def _known(layers: int, width: int, inner: int, heads: int, keys: int, words: int, *, tied: bool = False) -> Shape:
    return _of_config(
        {
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": keys,
            "intermediate_size": inner,
            "vocab_size": words,
            "tie_word_embeddings": tied,
        }
    )


def _of_size(parameters: int) -> Shape:
    """The known model that is nearest in size, with this number of parameters."""
    nearest = min(_KNOWN, key=lambda shape: abs(math.log(shape.parameters / parameters)))
    return nearest._replace(parameters=parameters, active=parameters)


_SANDBOX = Shape(SANDBOX_PARAMETERS, 2, 96, 288, 96, 96, 4, 463, SANDBOX_PARAMETERS)
_KNOWN = (
    _known(30, 576, 1536, 9, 3, 49152, tied=True),  # SmolLM2-135M
    _known(24, 896, 4864, 14, 2, 151936, tied=True),  # Qwen2.5-0.5B
    _known(16, 2048, 8192, 32, 8, 128256, tied=True),  # Llama-3.2-1B
    _known(28, 3072, 8192, 24, 8, 128256, tied=True),  # Llama-3.2-3B
    _known(32, 4096, 14336, 32, 8, 32000),  # Mistral-7B
    _known(32, 4096, 14336, 32, 8, 128256),  # Llama-3-8B
    _known(40, 5120, 13824, 40, 40, 32000),  # Llama-2-13B
    _known(64, 5120, 27648, 40, 8, 152064),  # Qwen2.5-32B
    _known(80, 8192, 28672, 64, 8, 128256),  # Llama-3-70B
)
