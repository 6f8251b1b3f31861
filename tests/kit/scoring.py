"""Responses to score, and their log-probs by the definition."""

import random
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from spa_recipes.generation.requests import Request
from spa_recipes.generation.scoring import Scored
from spa_recipes.generation.transformers import sample
from tests.kit import tiny_models
from tests.kit.tiny_models import SHAPE, VOCAB


class DoublingLlama(LlamaForCausalLM):  # type: ignore[misc]
    """Does something to its logits that no config says."""

    def forward(self, *args: Any, logits_to_keep: int | torch.Tensor = 0, **kwargs: Any) -> Any:
        output = super().forward(*args, logits_to_keep=logits_to_keep, **kwargs)
        output.logits = output.logits * 2
        return output


class BareLlama(DoublingLlama):
    """The same without `logits_to_keep`."""

    def forward(self, input_ids: Any = None, use_cache: Any = None) -> Any:  # type: ignore[override]
        return super().forward(input_ids=input_ids, use_cache=use_cache)


def build(kind: str) -> PreTrainedModel:
    if kind in ("doubling", "bare"):
        torch.manual_seed(0)
        return {"doubling": DoublingLlama, "bare": BareLlama}[kind](LlamaConfig(**SHAPE)).eval()
    return tiny_models.build(kind, attention="eager" if kind == "gemma2" else None)


def ragged(count: int = 24) -> list[Scored]:
    """Prompts of 1 to 30 tokens and responses of 1 to 40, random but fixed."""
    rng = random.Random(0)
    return [
        Scored(
            [rng.randrange(VOCAB) for _ in range(rng.randint(1, 30))],
            [rng.randrange(VOCAB) for _ in range(rng.randint(1, 40))],
        )
        for _ in range(count)
    ]


def slow_logps(model: PreTrainedModel, items: list[Scored]) -> list[float]:
    """The definition, spelled out; the model computes in float64."""
    model = model.double()
    sums = []
    for prompt_ids, response_ids in items:
        with torch.no_grad():
            logits_TV = model(input_ids=torch.tensor([prompt_ids + response_ids]), use_cache=False).logits[0]
        total = 0.0
        for i, token in enumerate(response_ids):
            row = logits_TV[len(prompt_ids) + i - 1].tolist()
            total += row[token] - torch.tensor(row, dtype=torch.float64).exp().sum().log().item()
        sums.append(total)
    model.float()
    return sums


def with_shared_prompts(prompts: int = 6, samples: int = 4) -> list[Scored]:
    """Several responses of 1 to 12 tokens to each of some prompts of 12 to 40, in no order."""
    rng = random.Random(1)
    items = []
    for _ in range(prompts):
        prompt = [rng.randrange(VOCAB) for _ in range(rng.randint(12, 40))]
        items += [Scored(prompt, [rng.randrange(VOCAB) for _ in range(rng.randint(1, 12))]) for _ in range(samples)]
    rng.shuffle(items)
    return items


def sampled(model: PreTrainedModel) -> tuple[list[Scored], list[float]]:
    """Answers that a model sampled, and the sums of the log-probs that were kept of them."""
    requests = [Request(str(i), 0, item.prompt_ids) for i, item in enumerate(ragged())]
    completions = sample(
        model,
        requests,
        temperature=0.7,
        top_p=0.9,
        max_tokens=30,
        stop_ids=[0, 1],
        seed_of=lambda request: int(request.prompt_id),
        batch_size=8,
    )
    items = [Scored(r.prompt_ids, c.response_ids) for r, c in zip(requests, completions, strict=True)]
    return items, [sum(c.logps) for c in completions]
