"""Keys: the same key means the same result.

A stage's key hashes what changes its result (settings that are not marked `RUNTIME`, keys and paths of its inputs,
content of external data and models, the version of its kind) and nothing else.
"""

import hashlib
import json
from typing import Any

from pydantic import BaseModel

KIND_VERSIONS: dict[str, int] = {
    "init_model": 1,
    "data": 1,
    "sft": 1,
    "dpo": 1,
    "reward_model": 1,
    "generate": 1,
    "candidates": 1,
    "score": 1,
    "reward": 1,
    "verdicts": 1,
    "endpoint_verdicts": 1,
    "judge": 2,
    "refine": 1,
    "evaluate": 2,
    "answers": 1,
    "alpaca_annotations": 1,
    "alpaca_score": 1,
    "mt_bench_judge": 1,
    "versus": 1,
    "win_rate": 1,
}
"""Raised by one when a stage of that kind would give another result for the same settings."""


def semantic(value: Any) -> Any:
    """The JSON form of a setting without the fields that cannot change a result."""
    if isinstance(value, BaseModel):
        return {
            name: semantic(getattr(value, name))
            for name, field in type(value).model_fields.items()
            if not (isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("runtime"))
        }
    if isinstance(value, list | tuple):
        return [semantic(item) for item in value]
    if isinstance(value, dict):
        return {name: semantic(item) for name, item in value.items()}
    return value


def key_material(kind: str, settings: dict[str, Any], inputs: dict[str, str]) -> dict[str, Any]:
    """Everything that the key of a stage depends on, readable: the basis of `spa plan --diff`."""
    return {"kind": kind, "version": KIND_VERSIONS[kind], "settings": semantic(settings), "inputs": inputs}


def stage_key(material: dict[str, Any]) -> str:
    """32 hex digits for key material."""
    return hashlib.sha256(json.dumps(material, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:32]


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Field by field, `path: old -> new`, for two JSON values."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for name in sorted(old.keys() | new.keys())
            for line in differences(old.get(name), new.get(name), f"{path}.{name}" if path else name)
        ]
    return [] if old == new else [f"{path}: {json.dumps(old)} -> {json.dumps(new)}"]
