"""Training data of the world in the forms that real datasets have.

The seed of a generator is made of the name of its rows and the caller's number. Rows are made one after the other, so
a short list is the beginning of a long one with the same seed.
"""

import math
import random
from typing import Any

from spa_recipes.sandbox.gold import gold_reward
from spa_recipes.sandbox.world import all_prompts, sample_skill, write_reply

# Labellers are Bradley-Terry on twice the gold gap: they err, and more often where two replies are close.
LABEL_SHARPNESS = 2.0


def sft_rows(n: int, seed: int) -> list[dict[str, Any]]:
    """Make `n` demonstrations by authors of every skill, as `messages`; prompts may repeat."""
    rng = random.Random(f"sft {seed}")
    prompts = all_prompts()
    return [_sft_row(rng.choice(prompts), rng) for _ in range(n)]


def preference_rows(n: int, seed: int) -> list[dict[str, Any]]:
    """Make `n` labelled pairs over `n` different prompts, each of two replies by two authors.

    The form is that of the cleaned UltraFeedback: a string `prompt`, and `chosen` and `rejected` as whole
    conversations. `gold_chosen` and `gold_rejected` are the true rewards, for measurements only.

    Raises:
        ValueError: `n` is negative or larger than the number of prompts.
    """
    prompts = all_prompts()
    if not 0 <= n <= len(prompts):
        raise ValueError(f"the sandbox world has {len(prompts)} prompts, so it cannot make {n} preference rows")
    rng = random.Random(f"preferences {seed}")
    rng.shuffle(prompts)
    return [_preference_row(prompt, rng) for prompt in prompts[:n]]


def _sft_row(prompt: str, rng: random.Random) -> dict[str, Any]:
    return {"messages": _conversation(prompt, write_reply(prompt, sample_skill(rng), rng))}


def _preference_row(prompt: str, rng: random.Random) -> dict[str, Any]:
    chosen = rejected = write_reply(prompt, sample_skill(rng), rng)
    while rejected == chosen:
        rejected = write_reply(prompt, sample_skill(rng), rng)
    gold_chosen, gold_rejected = gold_reward(prompt, chosen), gold_reward(prompt, rejected)
    if rng.random() >= 1 / (1 + math.exp(-LABEL_SHARPNESS * (gold_chosen - gold_rejected))):
        chosen, rejected, gold_chosen, gold_rejected = rejected, chosen, gold_rejected, gold_chosen
    return {
        "prompt": prompt,
        "chosen": _conversation(prompt, chosen),
        "rejected": _conversation(prompt, rejected),
        "gold_chosen": gold_chosen,
        "gold_rejected": gold_rejected,
    }


def _conversation(prompt: str, reply: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]
