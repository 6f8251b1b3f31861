"""What a policy's weights differ by, from memory, from files and from adapters."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from spa_recipes.algo.tangents import Thin
from spa_recipes.errors import DataError, StageError
from spa_recipes.generation.tangent import sequence_log_ratios
from spa_recipes.models.update import adapter_update, difference, stored_difference
from tests.kit.scoring import with_shared_prompts
from tests.kit.tiny_models import build, tiny_llama
from tests.kit.updates import moved, random_update, stored_stochastically


def test_the_difference_of_two_half_precision_models_is_exact_within_a_factor_of_two() -> None:
    reference = build("llama").bfloat16()
    policy = stored_stochastically(moved(build("llama").bfloat16().float(), random_update(reference, 1e-3)))
    update = difference(policy, reference)
    for name, weight in reference.named_parameters():
        exact = policy.get_parameter(name).double() - weight.double()
        move = update.moves.get(name)
        kept = move.double() if isinstance(move, torch.Tensor) else torch.zeros_like(exact)
        near = (policy.get_parameter(name) / weight - 1.25).abs() <= 0.75
        assert near.float().mean() > 0.95
        assert torch.equal(kept[near], exact[near])
        torch.testing.assert_close(kept, exact, rtol=2**-8, atol=0.0)


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_files_give_the_difference_that_memory_gives(tmp_path: Path, shards: int, dtype: torch.dtype) -> None:
    reference = tiny_llama(0)  # its output layer is its embedding
    policy = moved(reference, random_update(reference, 0.01)).to(dtype)
    policy.save_pretrained(tmp_path, max_shard_size="3KB" if shards > 1 else "5GB")
    assert len(list(tmp_path.glob("*.safetensors"))) >= shards
    expected, found = difference(policy, reference), stored_difference(tmp_path, reference)
    assert found.scale == expected.scale == 1.0
    assert found.moves.keys() == expected.moves.keys()
    for name, move in expected.moves.items():
        torch.testing.assert_close(found.moves[name], move, rtol=0, atol=0)


def test_a_weight_that_stays_is_left_out() -> None:
    reference = build("llama")
    policy = moved(reference, {"model.norm.weight": torch.ones(32)})
    assert list(difference(policy, reference).moves) == ["model.norm.weight"]


@pytest.mark.parametrize(
    ("policy", "what"),
    [
        (lambda: build("qwen3"), "different weights: only the policy has model.layers.0.self_attn.k_norm.weight"),
        (lambda: build("gpt2"), "different weights: only the reference has "),
        (lambda: tiny_llama(1), "different shapes|different weights"),
    ],
)
def test_models_that_do_not_fit_each_other_are_refused(policy: object, what: str) -> None:
    with pytest.raises(StageError, match=what) as error:
        difference(policy(), build("llama"))  # type: ignore[operator]
    assert "\n" not in str(error.value)


def test_other_vocabularies_are_refused() -> None:
    with pytest.raises(StageError, match=r"different shapes: model.embed_tokens.weight is \[19, 16\] and \[17, 16\]"):
        difference(tiny_llama(0, vocabulary=19), tiny_llama(0))


def test_a_policy_with_an_output_layer_of_its_own_is_no_update_of_a_tied_reference() -> None:
    policy = tiny_llama(1)
    with pytest.raises(StageError, match=r"ties .*lm_head.weight.*, and the policy does not"):
        difference(policy, tiny_llama(0))


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read the policy's weights"):
        stored_difference(tmp_path, build("llama"))


# --- adapters


def adapted(reference: PreTrainedModel, folder: Path, targets: list[str], **settings: object) -> PreTrainedModel:
    """Save a random adapter, and return the model that it is merged into."""
    torch.manual_seed(3)
    model = get_peft_model(tiny_copy(reference), LoraConfig(r=3, lora_alpha=5, target_modules=targets, **settings))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.05)
    model.save_pretrained(folder)
    return PeftModel.from_pretrained(tiny_copy(reference), str(folder)).merge_and_unload()


def tiny_copy(reference: PreTrainedModel) -> PreTrainedModel:
    return moved(reference, {})


@pytest.mark.parametrize(
    ("kind", "targets", "settings"),
    [
        ("llama", ["q_proj", "down_proj"], {}),
        ("llama", ["o_proj"], {"use_rslora": True}),
        ("gpt2", ["c_attn", "c_fc"], {"fan_in_fan_out": True}),
    ],
)
def test_an_adapter_is_the_update_of_its_merged_model(
    tmp_path: Path, kind: str, targets: list[str], settings: dict[str, object]
) -> None:
    reference = build(kind)
    merged = adapted(reference, tmp_path, targets, **settings)
    thin, dense = adapter_update(tmp_path, reference), difference(merged, reference)
    assert thin.moves.keys() == dense.moves.keys()
    assert all(isinstance(move, Thin) for move in thin.moves.values())
    items = with_shared_prompts(prompts=1, samples=2)
    both = [sequence_log_ratios(update, reference, items, tokens_per_batch=300) for update in (thin, dense)]
    for one, other in zip(*both, strict=True):
        assert one.log_ratio == pytest.approx(other.log_ratio, abs=2e-4)


def test_an_adapter_that_is_more_than_lora_is_refused(tmp_path: Path) -> None:
    reference = build("llama")
    adapted(reference, tmp_path, ["q_proj"], use_dora=True)
    with pytest.raises(StageError, match="not plain LoRA: use_dora"):
        adapter_update(tmp_path, reference)


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    adapted(build("llama"), tmp_path, ["q_proj"])
    with pytest.raises(StageError, match=r"does not fit the reference: model.layers.0.self_attn.q_proj.weight"):
        adapter_update(tmp_path, build("gpt2"))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 3}))
    with pytest.raises(DataError, match="cannot read the adapter"):
        adapter_update(tmp_path, build("llama"))
