"""Versions of libraries: which made a result, and whether they are the installed ones."""

from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version

VERSIONED = ("spa-recipes", "torch", "transformers", "trl", "datasets", "accelerate", "peft", "vllm")
COMPUTING = ("torch", "transformers", "trl")
"""Other versions of these give other roundings, and with them other results."""


def library_versions() -> dict[str, str]:
    """Versions of the libraries that can change a result."""
    return {name: number for name in VERSIONED if (number := _version(name))}


@cache  # it reads a file; the children of the fork server have what it read
def _version(library: str) -> str | None:
    with suppress(PackageNotFoundError):
        return version(library)
    return None


def others(made_with: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str]:
    """Of the libraries that compute, those whose version was another one, with that version."""
    return {name: made_with[name] for name in COMPUTING if name in made_with and made_with[name] != now.get(name)}


def in_words(libraries: Mapping[str, str]) -> str:
    """`torch 2.12.0, trl 0.25.0`."""
    return ", ".join(f"{name} {number}" for name, number in libraries.items())
