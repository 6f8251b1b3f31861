"""Models that look at the length of what they read: a training reads texts as if each of them were alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from spa_recipes.generation.rewards import sequence_rewards
from spa_recipes.models.causal import reads_lengths
from spa_recipes.training.run import train_preference, train_sft
from tests.kit.families import tiny
from tests.kit.training import make_env, make_model, preference, supervised, train_rewards, untrained
from tests.unit.test_models_families import ROPE

WORDS = 40


def doge() -> PreTrainedModel:
    """Attention that chooses 16 tokens among all of a row; which ones hangs on numbers that are 0 before a training."""
    model = tiny("doge", WORDS, initializer_range=0.3, attention_dropout=0.0, keep_window_size=16)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(".A"):
                weight.copy_(torch.linspace(-1.0, 1.0, weight.numel()))
    return model


def phi3() -> PreTrainedModel:
    return tiny("phi3", WORDS, initializer_range=0.3, attention_dropout=0.0, **ROPE["longrope"])


def saved(model: PreTrainedModel, folder: Path) -> Path:
    """The model with the tokenizer of the sandbox, of which only small ids are used."""
    make_model(folder)
    model.save_pretrained(folder)
    return folder


def drawn(length: int, seed: int) -> list[int]:
    return torch.randint(5, WORDS, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def logp_alone(model: PreTrainedModel, prompt: list[int], response: list[int]) -> float:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0].double()
    logps = logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(-1, torch.tensor(response)[:, None])
    return float(logps.sum())


def pairs(model: PreTrainedModel) -> list[dict[str, Any]]:
    """Pairs of short and long responses, with the log-probs that the model gives to each text by itself."""
    rows: list[dict[str, Any]] = []
    for number in range(8):
        prompt, chosen, rejected = drawn(6, number), drawn(12 + 6 * number, 10 + number), drawn(70 - 7 * number, 20)
        rows.append(
            {
                "prompt_ids": prompt,
                "chosen_ids": chosen,
                "rejected_ids": rejected,
                "ref_chosen_logps": logp_alone(model, prompt, chosen),
                "ref_rejected_logps": logp_alone(model, prompt, rejected),
            }
        )
    return rows


@pytest.mark.parametrize("make", [doge, phi3])
def test_the_first_margins_of_a_training_are_those_of_texts_alone(make: Any, tmp_path: Path) -> None:
    rows = pairs(make())
    policy = saved(make(), tmp_path / "model")
    notices: list[str] = []
    env = replace(make_env(policy, tmp_path), on_notice=notices.append)
    result = train_preference(policy, rows, preference(logging_steps=1), env, reference_path=None, refinement=None)
    assert result.history[0]["rewards/margins"] == pytest.approx(0.0, abs=1e-5)
    assert result.history[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert [text for text in notices if "are read one by one" in text]


def test_the_first_loss_of_a_supervised_training_is_that_of_texts_alone(tmp_path: Path) -> None:
    texts = [(drawn(6, number), drawn(12 + 8 * number, 30 + number)) for number in range(8)]
    rows = [{"input_ids": p + r, "response_mask": [0] * len(p) + [1] * len(r)} for p, r in texts]
    policy = saved(doge(), tmp_path / "model")
    result = train_sft(policy, rows, supervised(logging_steps=1), make_env(policy, tmp_path))
    model = doge()
    mean = -sum(logp_alone(model, *text) for text in texts) / sum(len(response) for _, response in texts)
    assert result.history[0]["loss"] == pytest.approx(mean, abs=1e-5)


def test_rewards_and_their_training_are_those_of_texts_alone(tmp_path: Path) -> None:
    rows = pairs(doge())
    policy = saved(doge(), tmp_path / "model")
    env = make_env(policy, tmp_path)
    result = train_rewards(policy, rows, env, logging_steps=1)

    model = untrained(policy, env.seed).eval()
    texts = [row["prompt_ids"] + row[side] for side in ("chosen_ids", "rejected_ids") for row in rows]
    with torch.no_grad():
        alone = [model(input_ids=torch.tensor([text])).logits.item() for text in texts]
    losses = -torch.nn.functional.logsigmoid(torch.tensor(alone[:8]) - torch.tensor(alone[8:]))
    assert result.history[0]["loss"] == pytest.approx(losses.mean().item(), abs=1e-5)
    assert sequence_rewards(model, texts, tokens_per_batch=512) == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma3_text", "qwen3", "mixtral"])
def test_most_models_read_batches(family: str) -> None:
    assert not reads_lengths(tiny(family, WORDS, initializer_range=0.3), drawn(90, 0), 10)


def test_a_reward_model_that_reads_both_ways_reads_batches() -> None:
    assert reads_lengths(tiny("bert", WORDS), drawn(90, 0), 10)
    assert not reads_lengths(tiny("bert", WORDS), drawn(90, 0), 10, masked=True)
