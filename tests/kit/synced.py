"""Notes which names of files and folders are on the disk, and which a power cut could take back."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest


def no_sync(fd: Any) -> None:
    """In the place of `os.fsync`, whose waits are long: nobody cuts the power of the tests.

    That files are synced, and in which order, has tests that record the calls. Fresh interpreters sync.
    """


class Call(NamedTuple):
    """A call that makes a name (`mkdir`, `rename`, `link`) or syncs a file or folder (`fsync`), and its path."""

    kind: str
    path: Path


@contextmanager
def noted() -> Iterator[list[Call]]:
    """Note the calls of this process that make or sync names, in their order."""
    calls: list[Call] = []

    def note(name: str, kind: str, path_of: Any) -> None:
        original = getattr(os, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            path = Path(path_of(args))
            result = original(*args, **kwargs)
            calls.append(Call(kind, path))
            return result

        patch.setattr(os, name, wrapped)

    with pytest.MonkeyPatch.context() as patch:
        note("fsync", "fsync", lambda args: os.readlink(f"/proc/self/fd/{args[0]}"))  # noqa: PTH115
        note("mkdir", "mkdir", lambda args: args[0])
        for name in ("rename", "replace", "link"):
            note(name, "link" if name == "link" else "rename", lambda args: args[1])
        yield calls


def can_be_lost(calls: list[Call], kept: Path) -> list[Call]:
    """The calls that made `kept`, or a folder above it, and whose folder was not synced after them."""
    return [
        call
        for i, call in enumerate(calls)
        if call.kind != "fsync"
        and (call.path == kept or call.path in kept.parents)
        and Call("fsync", call.path.parent) not in calls[i:]
    ]
