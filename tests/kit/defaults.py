"""What the settings of each kind of stage default to, and the store of it beside the tests.

    python -m tests.kit.defaults    writes tests/unit/defaults.json

A key holds no setting that has its default value, so it cannot see that a default changed. The version of the kind can:
the store is not written while a default is another one and the version is the same.
"""

import json
import sys
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from spa_recipes.plan.keys import is_semantic, semantic
from spa_recipes.plan.kinds import KINDS

STORE = Path(__file__).parents[1] / "unit" / "defaults.json"

Defaults = dict[str, dict[str, Any]]
"""By kind: its version, and the defaults of its settings by their dotted names."""


def defaults() -> Defaults:
    """The defaults as the code has them."""
    return {
        name: {
            "version": kind.version,
            "defaults": {
                path: value for setting, type_ in kind.settings.items() for path, value in _of(type_, setting)
            },
        }
        for name, kind in KINDS.items()
    }


def changed(stored: Defaults, now: Defaults) -> list[str]:
    """`kind: setting: old -> new` for each default that changed without the version of its kind."""
    return [
        f"{kind}: {path}: {json.dumps(value)} -> {json.dumps(now[kind]['defaults'][path])}"
        for kind, entry in stored.items()
        if kind in now and now[kind]["version"] == entry["version"]
        for path, value in entry["defaults"].items()
        if path in now[kind]["defaults"] and now[kind]["defaults"][path] != value
    ]


def _of(type_: Any, path: str) -> list[tuple[str, Any]]:
    """The defaults of all sections in a type, each with its path; a section of a union has its `type` in it."""
    if isinstance(type_, type) and issubclass(type_, BaseModel):
        found = []
        for name, field in type_.model_fields.items():
            if not is_semantic(field):
                continue
            if not field.is_required():
                found.append((f"{path}.{name}", semantic(field.get_default(call_default_factory=True))))
            found += _of(field.annotation, f"{path}.{name}")
        return found
    return [pair for inner in typing.get_args(type_) for pair in _of(inner, path + _tag(inner))]


def _tag(type_: Any) -> str:
    """The `type` of a section that is one of several, in brackets; empty for anything else."""
    if not (isinstance(type_, type) and issubclass(type_, BaseModel)) or "type" not in type_.model_fields:
        return ""
    return f"[{typing.get_args(type_.model_fields['type'].annotation)[0]}]"


def main() -> None:
    """Write the store; refuse if a default changed and a version did not."""
    now = defaults()
    if STORE.exists() and (lines := changed(json.loads(STORE.read_text()), now)):
        sys.exit("raise the version of these kinds in spa_recipes/plan/kinds.py first:\n" + "\n".join(lines))
    STORE.write_text(json.dumps(now, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
