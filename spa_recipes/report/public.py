"""The part of a recipe that everybody may see: no paths of the machine that it ran on, no keys, no private servers."""

import ipaddress
import re
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from spa_recipes.plan import External, Plan

OF_THE_MACHINE = ("tracking", "compute", "storage")
"""Sections of a recipe that say where and how it ran and change no result."""

LOCAL_SERVER = "http://localhost:8000/v1"
"""Replaces the address of a server that nobody else can reach."""

_PATH_IN_TEXT = re.compile(r"(?<![\w:/.~])(?:~|\.{1,2})?/(?:[^\s/:;,'\"`()<>|]+/)+([^\s/:;,'\"`()<>|]*)")
_SECRET = re.compile(r"\b(?:hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{32,}|gh[pousr]_[A-Za-z0-9]{20,})")
_FILE_SUFFIXES = frozenset({".jsonl", ".json", ".parquet", ".csv", ".jinja", ".j2", ".yaml", ".yml", ".txt", ".arrow"})
_URL = re.compile(r"https?://[^\s'\"`<>]+")


def public_recipe(plan: Plan) -> dict[str, Any]:
    """The resolved recipe without the sections of the machine; local paths are cut to their last part."""
    local = {
        _plain(value.location)
        for stage in plan.stages
        for value in stage.inputs.values()
        if isinstance(value, External) and is_local(value)
    }
    whole = plan.recipe.model_dump(mode="json", exclude=set(OF_THE_MACHINE))
    return {name: _public(value, local) for name, value in whole.items()}


def is_local(value: External) -> bool:
    """Whether an input is a file or folder of the machine."""
    return value.fingerprint.startswith("sha256:")


def last_part(path: str) -> str:
    """Name of a file or folder, without its path; of a list of them, the names of all."""
    return ", ".join(PurePosixPath(one.replace("\\", "/")).name or one for one in path.split(", "))


def _public(value: Any, local: set[str]) -> Any:
    if isinstance(value, dict):
        return {name: _public(inner, local) for name, inner in value.items()}
    if isinstance(value, list):
        return [_public(inner, local) for inner in value]
    return _public_text(value, local) if isinstance(value, str) else value


def _public_text(text: str, local: set[str]) -> str:
    if _plain(text) in local or _is_path(text):
        return last_part(text)
    text = _URL.sub(lambda url: _public_url(url[0]), text)
    return _SECRET.sub("***", _PATH_IN_TEXT.sub(lambda path: path[1] or last_part(path[0]), text))


def _is_path(text: str) -> bool:
    """Whether the whole text is a path; a Hub id such as `org/name` is not."""
    if "\n" in text or "://" in text:
        return False
    starts = text.startswith(("/", "./", "../", "~")) or re.match(r"[A-Za-z]:[\\/]", text) is not None
    return starts or ("/" in text and " " not in text and PurePosixPath(text).suffix.lower() in _FILE_SUFFIXES)


def _plain(path: str) -> str:
    """A path without a slash at its end or dots in its middle."""
    return str(PurePosixPath(path))


def _public_url(url: str) -> str:
    """The address without name and password, or `LOCAL_SERVER` for a server in a private network."""
    parts = urlsplit(url)
    if _is_private(parts.hostname or ""):
        return LOCAL_SERVER
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _is_private(host: str) -> bool:
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return "." not in host or host.endswith((".local", ".lan", ".internal", ".intranet", ".home", ".corp"))
