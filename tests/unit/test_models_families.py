"""What a family does with long texts, adapters, ends and padding is right, or it is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel

from spa_recipes.errors import DataError, RecipeError, StageError
from spa_recipes.generation import scoring
from spa_recipes.generation.requests import Request
from spa_recipes.generation.scoring import Scored, sequence_logps
from spa_recipes.generation.transformers import sample
from spa_recipes.models.adapters import lora_config, refuse_on_output_layer
from spa_recipes.models.causal import check_causal
from spa_recipes.models.loading import load_causal_lm
from spa_recipes.recipe.schema import Lora
from spa_recipes.stages.generate import _refuse_other_model
from spa_recipes.training import run
from spa_recipes.training.run import train_preference
from tests.kit.families import tiny
from tests.kit.training import make_env, make_model, make_pairs, preference


def logp_alone(model: PreTrainedModel, item: Scored) -> float:
    """log pi(y|x) in float64 by the model's own forward pass, the text by itself."""
    ids = torch.tensor([item.prompt_ids + item.response_ids])
    with torch.no_grad():
        logps = model.double()(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
    start = len(item.prompt_ids) - 1
    return sum(float(logps[start + i, token]) for i, token in enumerate(item.response_ids))


def texts(lengths: list[int]) -> list[Scored]:
    draw = torch.Generator().manual_seed(0)
    ids = [torch.randint(40, (length,), generator=draw).tolist() for length in lengths]
    return [Scored(text[: len(text) // 2], text[len(text) // 2 :]) for text in ids]


ROPE = {
    "dynamic": {
        "max_position_embeddings": 32,
        "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4},
    },
    "longrope": {
        "max_position_embeddings": 128,
        "original_max_position_embeddings": 32,
        "rope_parameters": {
            "rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [3.0] * 4, "rope_theta": 1e4,
            "original_max_position_embeddings": 32,
        },
    },
}  # fmt: skip
LONG: dict[str, tuple[str, dict[str, Any]]] = {
    "doge, more than its window": ("doge", {"keep_window_size": 32}),
    "phi3, longrope": ("phi3", ROPE["longrope"]),
    "mistral, sliding window": ("mistral", {"sliding_window": 16}),
    "gemma3": ("gemma3_text", {"sliding_window": 16}),
}


@pytest.mark.parametrize("name", LONG)
def test_log_probs_of_long_texts_beside_others_are_those_of_the_text_alone(name: str) -> None:
    family, settings = LONG[name]
    model = tiny(family, 40, initializer_range=0.3, attention_dropout=0.0, **settings)
    items = texts([100, 12, 60, 20, 100])
    ours = sequence_logps(model, items, tokens_per_batch=512)
    model = tiny(family, 40, initializer_range=0.3, attention_dropout=0.0, **settings)
    assert ours == pytest.approx([logp_alone(model, item) for item in items], abs=2e-3)


def test_positions_that_grow_and_stay_so_are_refused_where_they_would() -> None:
    model = tiny("llama", 40, **ROPE["dynamic"])
    items = texts([32, 12, 20])
    ours = sequence_logps(model, items, tokens_per_batch=512)
    assert ours == pytest.approx([logp_alone(tiny("llama", 40, **ROPE["dynamic"]), item) for item in items], abs=1e-4)
    with pytest.raises(DataError, match="a text of 33 tokens is longer than 32"):
        sequence_logps(model, texts([12, 33]), tokens_per_batch=512)


def test_packing_is_tried_on_the_longest_text(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[list[Scored]] = []

    def look(model: PreTrainedModel, some: list[Scored]) -> bool:
        tried.append(some)
        return True

    monkeypatch.setattr(scoring, "_look_the_same", look)
    items = texts([30, 90, 12])
    sequence_logps(tiny("llama", 40), items, tokens_per_batch=512)
    assert tried[-1] == [items[2], items[1]]


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma3_text", "qwen2", "mixtral"])
def test_a_causal_model_is_taken(family: str) -> None:
    check_causal(tiny(family, 40))


@pytest.mark.parametrize("family", ["gemma3_text", "bert"])
def test_a_model_that_reads_later_tokens_is_refused(family: str) -> None:
    settings = {"use_bidirectional_attention": True} if family == "gemma3_text" else {}
    with pytest.raises(DataError, match="it is no causal language model"):
        check_causal(tiny(family, 40, **settings))


def test_a_model_that_reads_later_tokens_of_long_texts_only_is_refused_where_they_are_that_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def looks_ahead(layer: torch.nn.Module, _: Any, out: torch.Tensor) -> torch.Tensor:
        return out + out.mean(1, keepdim=True) if out.shape[1] > 10 else out

    model = tiny("llama", 40)
    model.model.embed_tokens.register_forward_hook(looks_ahead)
    check_causal(model, 10)
    with pytest.raises(DataError, match="later tokens of a text of 11"):
        check_causal(model, 11)
    policy = make_model(tmp_path / "model")
    load = load_causal_lm

    def loaded(*arguments: Any, **options: Any) -> PreTrainedModel:
        made = load(*arguments, **options)
        made.get_input_embeddings().register_forward_hook(looks_ahead)
        return made

    monkeypatch.setattr(run, "load_causal_lm", loaded)
    env = make_env(policy, tmp_path)
    with pytest.raises(DataError, match="it is no causal language model"):
        train_preference(policy, make_pairs(8), preference(), env, reference_path=None, refinement=None)


@pytest.mark.parametrize(("module", "tied"), [("embed_tokens", True), ("lm_head", False), ("lm_head", True)])
def test_an_adapter_on_the_output_layer_is_refused(module: str, tied: bool) -> None:
    import peft

    model = tiny("llama", 40, tie_word_embeddings=tied)
    wrapped = peft.get_peft_model(
        model, lora_config(Lora().model_copy(update={"lora_target_modules": ["q_proj", module]}))
    )
    with pytest.raises(RecipeError, match=f"{module} is the output layer"):
        refuse_on_output_layer(wrapped)


def test_an_adapter_on_embeddings_of_their_own_is_taken() -> None:
    import peft

    model = tiny("llama", 40, tie_word_embeddings=False)
    refuse_on_output_layer(
        peft.get_peft_model(model, lora_config(Lora(lora_target_modules=["q_proj", "embed_tokens"])))
    )


def test_a_training_with_an_adapter_on_tied_embeddings_stops_before_it_begins(tmp_path: Path) -> None:
    policy = make_model(tmp_path / "model")
    env = make_env(policy, tmp_path, lora=Lora(lora_target_modules=["q_proj", "embed_tokens"]))
    with pytest.raises(RecipeError, match="embed_tokens is the output layer, too, as the embeddings are tied"):
        train_preference(policy, make_pairs(8), preference(), env, reference_path=None, refinement=None)
    assert not (tmp_path / "out").exists()


def test_a_generation_config_that_transformers_will_not_save_is_kept(tmp_path: Path) -> None:
    policy = make_model(tmp_path / "model")
    content = {"do_sample": False, "temperature": 0.9, "top_p": 0.6, "eos_token_id": [4, 3]}
    (policy / "generation_config.json").write_text(json.dumps(content))
    train_preference(
        policy, make_pairs(8), preference(), make_env(policy, tmp_path), reference_path=None, refinement=None
    )
    saved = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert content.items() <= saved.items()


def test_sampling_keys_of_a_generation_config_do_not_leak() -> None:
    model = tiny("llama", 40)
    requests = [Request(str(i), 0, [1 + i, 2, 3]) for i in range(4)]

    def sampled() -> list[list[int]]:
        answers = sample(
            model, requests, temperature=1.0, top_p=1.0, max_tokens=30, stop_ids=[0],
            seed_of=lambda r: int(r.prompt_id), batch_size=4,
        )  # fmt: skip
        return [answer.response_ids for answer in answers]

    before = sampled()
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.01, top_k=1, top_p=0.1, repetition_penalty=9.0, eos_token_id=before[0][0]
    )
    assert sampled() == before


def test_a_pad_token_beyond_the_embeddings_is_nothing_to_a_training(tmp_path: Path) -> None:
    policy = make_model(tmp_path / "model")
    outs = []
    for name, padded in (("own", False), ("beyond", True)):
        env = make_env(policy, tmp_path / name)
        if padded:
            env.tokenizer.add_special_tokens({"pad_token": "[PAD]"})
            assert env.tokenizer.pad_token_id >= json.loads((policy / "config.json").read_text())["vocab_size"]
        result = train_preference(policy, make_pairs(8), preference(), env, reference_path=None, refinement=None)
        outs.append(result.metrics["train_loss"])
    assert outs[0] == outs[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kept_log_probs_of_another_model_stop_a_stage(dtype: torch.dtype) -> None:
    """What rounding explains is known in float32, and measured in half precision; ten times that is another model."""
    model = tiny("llama", 40, initializer_range=0.3).to(dtype)
    (item,) = texts([100])
    ids = torch.tensor([item.prompt_ids + item.response_ids])
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0, 49:-1].float()
    once = logits.log_softmax(-1).gather(-1, ids[0, 50:, None])[:, 0].tolist()
    again = sum(once)

    def stage_with(off: float) -> None:
        logps = [once[0] + off, *once[1:]]
        ids = {"prompt_ids": item.prompt_ids, "response_ids": item.response_ids}
        row: Any = {"prompt_id": "abc", "sample": 1, **ids, "logps": logps}
        _refuse_other_model(model, [row], [again])

    stage_with(0.005)
    with pytest.raises(StageError, match=r"kept are 56 nats off those of one pass over the answer"):
        stage_with(56.0)
    if dtype == torch.float32:
        with pytest.raises(StageError, match=r"0\.056 nats off"):
            stage_with(0.056)
