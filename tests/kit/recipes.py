"""A miniature recipe that runs in seconds, and changes to it."""

import copy
from pathlib import Path
from typing import Any

import yaml

MINI: dict[str, Any] = {
    "name": "mini",
    "seed": 7,
    "model": {"model_name_or_path": "sandbox", "dtype": "float32", "max_length": 128, "max_prompt_length": 48},
    "data": {
        "pairs": {"type": "sandbox", "rows": 400},
        "seed_labels": 60,
        "prompts_per_iteration": [32, 48],
        "heldout": 24,
    },
    "sft": {
        "data": {"type": "sandbox", "rows": 200},
        "learning_rate": 4e-3,
        "global_batch_size": 16,
        "per_device_train_batch_size": 16,
    },
    "seed_training": {"learning_rate": 1e-4, "global_batch_size": 16, "per_device_train_batch_size": 16},
    "sampling": {"max_tokens": 32, "backend": {"type": "transformers", "batch_size": 64, "shard_size": 16}},
    "refine": {"learning_rate": 5e-5, "global_batch_size": 16, "per_device_train_batch_size": 16},
    "noise": {"threshold": {"type": "percentile", "window": 64, "min_pairs": 8}},
    "evaluation": {"max_prompts": 16, "reward": "gold"},
    "compute": {"executor": {"type": "fork"}, "cpu_threads": 1},
}
"""The quickstart in miniature: every stage kind of a run, on the sandbox."""


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy of a nested mapping with other values in some places."""
    result = dict(base)
    for key, value in changes.items():
        inner = result.get(key)
        result[key] = merged(inner, value) if isinstance(value, dict) and isinstance(inner, dict) else value
    return result


def mini(**changes: Any) -> dict[str, Any]:
    """The miniature recipe with changes."""
    return merged(copy.deepcopy(MINI), changes)


def write_recipe(path: Path, recipe: dict[str, Any]) -> Path:
    """Write a recipe as YAML."""
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


KEEPING = mini(
    sft={"save_steps": 4},
    seed_training={"save_steps": 3},
    refine={"save_steps": 1},
    storage={"keep_checkpoints": True, "keep_shards": True},
)
"""The miniature recipe with all checkpoints and shards kept, so that a copy of its run can be made unfinished again."""
