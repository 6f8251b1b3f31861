"""The forward-mode pass through the families of models that differ in their operations."""

from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedModel

from spa_recipes.generation.scoring import sequence_logps
from spa_recipes.generation.tangent import NoForwardModeError, sequence_log_ratios
from tests.kit.float64 import InFloat64
from tests.kit.scoring import with_shared_prompts
from tests.kit.tiny_models import GPT2, SHAPE, VOCAB
from tests.kit.updates import moved, random_update

OWN: dict[str, Any] = {"vocab_size": VOCAB, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.3}
FAMILIES: dict[str, dict[str, Any]] = {
    "OPT": {
        **OWN, **SMALL, "ffn_dim": 48, "max_position_embeddings": 96, "word_embed_proj_dim": 32, "init_std": 0.3
    },
    "GPTNeoX": SHAPE,
    "Phi": SHAPE,
    "Phi3": SHAPE,
    "Falcon": {**OWN, **SMALL},
    "GPTJ": {**OWN, **GPT2, "rotary_dim": 4},
    "StableLm": {**SHAPE, "qk_layernorm": True},
    "Mixtral": {**SHAPE, "num_local_experts": 3, "experts_implementation": "eager"},
    "Mamba": {**OWN, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
}  # fmt: skip
ITEMS = with_shared_prompts(prompts=1, samples=2)


def family(name: str, **settings: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**settings)
    model: PreTrainedModel = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    return model


@pytest.mark.parametrize("name", FAMILIES)
def test_the_derivative_is_that_of_central_differences(name: str) -> None:
    reference = family(name, **FAMILIES[name]).double()
    update, step = random_update(reference, 1e-3), 1e-3
    with InFloat64():
        ahead, behind = (
            sequence_logps(moved(reference, update, 0.5 + h), ITEMS, tokens_per_batch=300) for h in (step, -step)
        )
        found = sequence_log_ratios(moved(reference, update), reference, ITEMS, tokens_per_batch=300)
    expected = [(a - b) / (2 * step) for a, b in zip(ahead, behind, strict=True)]
    assert [ratio for ratio, _ in found] == pytest.approx(expected, abs=1e-8)
    assert min(map(abs, expected)) > 1e-5


def test_a_family_with_a_function_of_its_own_is_refused_by_its_name() -> None:
    reference = family("Bloom", **OWN, **SMALL)
    policy = moved(reference, random_update(reference, 1e-3))
    with pytest.raises(NoForwardModeError, match="GeLUFunction has no derivative in forward mode"):
        sequence_log_ratios(policy, reference, ITEMS, tokens_per_batch=300)


def test_experts_are_computed_one_by_one_whatever_the_model_does_by_itself() -> None:
    settings = {name: value for name, value in FAMILIES["Mixtral"].items() if name != "experts_implementation"}
    reference = family("Mixtral", **settings)
    own = reference.config._experts_implementation
    assert own != "eager"
    policy = moved(reference, random_update(reference, 1e-4))
    found = sequence_log_ratios(policy, reference, ITEMS, tokens_per_batch=300)
    two_passes = zip(
        *(sequence_logps(model, ITEMS, tokens_per_batch=300) for model in (policy, reference)), strict=True
    )
    assert [ratio for ratio, _ in found] == pytest.approx([a - b for a, b in two_passes], abs=2e-4)
    assert reference.config._experts_implementation == own
