"""Keys: the same key means the same result.

A stage's key hashes what changes its result: the settings that differ from their default, the keys and paths of its
inputs, the content of external data and models, and the version of its kind. It leaves out

- a setting that has its default value, so that a new setting makes no finished stage stale. A default that changes
  raises the version of the kinds that read it (`tests/unit/test_defaults.py` watches over that);
- a field marked `RUNTIME`, which does not change a result;
- a field marked `LOCATION` or `REVISION`, whose content is an input and is in the key as such.
"""

import hashlib
import json
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

SCHEME = 2
"""The way in which keys are made. Runs of another scheme name the same results by other keys."""

_ABSENT = object()


def semantic(value: Any) -> Any:
    """The JSON form of a setting with only what can change a result and is not the default.

    A section is `{}` where everything has its default, but for the `type` that says which of several sections it is.
    """
    if isinstance(value, BaseModel):
        return {
            name: form
            for name, default in _defaults(type(value)).items()
            if (form := semantic(getattr(value, name))) != default or name == "type"
        }
    if isinstance(value, list | tuple):
        return [semantic(item) for item in value]
    if isinstance(value, dict):
        return {name: semantic(item) for name, item in value.items()}
    return value


def is_semantic(field: FieldInfo) -> bool:
    """Whether a field's own value belongs into keys."""
    marks = field.json_schema_extra
    return not (isinstance(marks, dict) and (marks.get("runtime") or marks.get("input")))


@cache
def _defaults(section: type[BaseModel]) -> dict[str, Any]:
    """The JSON forms of the defaults of the fields that belong into keys; one that no value has where there is none."""
    return {
        name: _ABSENT if field.is_required() else semantic(field.get_default(call_default_factory=True))
        for name, field in section.model_fields.items()
        if is_semantic(field)
    }


def key_material(kind: str, version: int, settings: dict[str, Any], inputs: dict[str, str]) -> dict[str, Any]:
    """Everything that the key of a stage depends on, readable: the basis of `spa plan --diff`."""
    return {"scheme": SCHEME, "kind": kind, "version": version, "settings": semantic(settings), "inputs": inputs}


def stage_key(material: dict[str, Any]) -> str:
    """32 hex digits for key material."""
    return hashlib.sha256(json.dumps(material, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:32]


def with_defaults(form: Any, setting: Any) -> Any:
    """A semantic form with the defaults that it leaves out, for people.

    Args:
        form: what `semantic` made of a setting, perhaps of another one of the same section.
        setting: says which sections there are; where `form` is of another `type`, it stays as it is.
    """
    if isinstance(setting, BaseModel) and isinstance(form, dict) and _is_like(form, setting):
        return {
            name: with_defaults(form[name], getattr(setting, name)) if name in form else _whole_default(field)
            for name, field in type(setting).model_fields.items()
            if is_semantic(field)
        } | {name: value for name, value in form.items() if name not in type(setting).model_fields}
    if isinstance(setting, dict) and isinstance(form, dict):
        return {name: with_defaults(value, setting.get(name)) for name, value in form.items()}
    return form


def _is_like(form: dict[str, Any], setting: BaseModel) -> bool:
    return bool(form.get("type") == getattr(setting, "type", None))


def _whole_default(field: FieldInfo) -> Any:
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    return with_defaults(semantic(default), default)


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Field by field, `path: old -> new`, for two JSON values; what only one of them has was or is the default."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for name in sorted(old.keys() | new.keys())
            for line in differences(old.get(name, _ABSENT), new.get(name, _ABSENT), f"{path}.{name}" if path else name)
        ]
    return [] if old == new else [f"{path}: {_shown(old)} -> {_shown(new)}"]


def _shown(value: Any) -> str:
    return "default" if value is _ABSENT else json.dumps(value)
