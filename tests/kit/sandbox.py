"""A fingerprint of the sandbox's world."""

import hashlib
import json

from spa_recipes.sandbox.rows import preference_rows, sft_rows
from spa_recipes.sandbox.world import all_prompts, vocabulary


def digest() -> str:
    """A fingerprint of the prompts, the vocabulary and the first rows."""
    made = [all_prompts(), vocabulary(), sft_rows(50, seed=0), preference_rows(50, seed=0)]
    return hashlib.sha256(json.dumps(made).encode()).hexdigest()
