"""Reads the small files of a run folder, whatever is in their place: with a limit, and with two kinds of errors."""

import json
import os
import stat
from pathlib import Path
from typing import Any

from spa_recipes.encoding import remedy, wide_encoding

MAX_BYTES = 64 * 1024 * 1024
"""More than any plan or manifest has; a file above it is none."""


def read_text(path: Path, *, limit: int = MAX_BYTES) -> str:
    """A small text file in UTF-8. A pipe in its place does not block, and a device is not read.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file, larger than `limit` bytes, or no UTF-8.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as handle:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise ValueError("not a regular file")
        content = handle.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"larger than {limit} bytes")
    if encoding := wide_encoding(content):
        raise ValueError(f"{encoding} text, not UTF-8; {remedy(encoding)}")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}; {remedy()}") from None


def is_file(path: Path) -> bool:
    """Whether a file is there that can be found; in a folder that nobody may enter there is none."""
    try:
        return path.is_file()
    except OSError:
        return False


def read_json(path: Path, *, limit: int = MAX_BYTES) -> Any:
    """A small JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON, nested too deep, or refused by `read_text`.
    """
    try:
        return json.loads(read_text(path, limit=limit))
    except RecursionError:
        raise ValueError("nested too deep") from None
