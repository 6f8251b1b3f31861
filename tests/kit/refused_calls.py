"""Makes chosen calls of the operating system fail, as another file system or a broken disk does.

`refusing` does it in this process. `variable` gives the environment that does it in a `spa` command and in all
processes that it starts.
"""

import builtins
import errno
import fcntl
import functools
import io
import json
import os
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

VARIABLE = "SPA_TEST_REFUSED_CALLS"


class Refused(NamedTuple):
    """Calls that fail.

    Attributes:
        call: symlink, link, chmod, fsync, flock, open (for reading), read, write (a file opened for it), stat, unlink.
        error: name of the error's number, such as `EIO`; with `SIGSTOP`, the process is stopped instead, and the call
            goes through when it goes on.
        path: a regular expression; calls on paths that it finds nothing in go through.
        times: how often it fails in a process before it goes through.
    """

    call: str
    error: str
    path: str = ""
    times: int = 1_000_000


@contextmanager
def refusing(*refused: Refused) -> Iterator[list[str]]:
    """Make calls of this process fail inside the block; yields `call path` of each that did."""
    with pytest.MonkeyPatch.context() as patch:
        yield _install(refused, patch.setattr)


def variable(*refused: Refused) -> dict[str, str]:
    """The environment for a command whose calls fail."""
    return {VARIABLE: json.dumps(refused)}


def install_from(environment: dict[str, str]) -> None:
    """Make the calls of this process fail for good, if the environment says so."""
    if VARIABLE in environment:
        _install([Refused(*each) for each in json.loads(environment[VARIABLE])], setattr)


def _install(refused: Sequence[Refused], replace: Callable[[Any, str, Any], None]) -> list[str]:
    left = {each: each.times for each in refused}
    made: list[str] = []

    def check(call: str, path: Any) -> None:
        name = _name(path)
        for each in refused:
            if each.call == call and left[each] > 0 and re.search(each.path, name):
                left[each] -= 1
                made.append(f"{call} {name}")
                if each.error == "SIGSTOP":
                    os.kill(os.getpid(), signal.SIGSTOP)
                    continue
                number = getattr(errno, each.error)
                raise OSError(number, os.strerror(number), *([name] if call not in ("fsync", "flock", "read") else []))

    def before(module: Any, name: str, call: str, position: int = 0) -> None:
        original = getattr(module, name)

        @functools.wraps(original)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            check(call, args[position])
            return original(*args, **kwargs)

        replace(module, name, wrapped)

    for module, name, call, position in (
        (os, "symlink", "symlink", 1),
        (os, "link", "link", 1),
        (os, "chmod", "chmod", 0),
        (os, "fsync", "fsync", 0),
        (os, "stat", "stat", 0),
        (os, "unlink", "unlink", 0),
        (fcntl, "flock", "flock", 0),
    ):
        if any(each.call == call for each in refused):
            before(module, name, call, position)
    if any(each.call in ("open", "read", "write") for each in refused):
        _install_opening(check, replace)
    return made


def _install_opening(check: Callable[[str, Any], None], replace: Callable[[Any, str, Any], None]) -> None:
    opened, os_opened, described = io.open, os.open, os.fdopen

    def opening(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        writes = bool(set(mode) & set("wax+"))
        check("write" if writes else "open", file)
        handle = opened(file, mode, *args, **kwargs)
        return handle if writes else _Reading(handle, file, check)

    def os_opening(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        check("write" if flags & (os.O_WRONLY | os.O_RDWR) else "open", path)
        return os_opened(path, flags, *args, **kwargs)

    def describing(descriptor: int, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        handle = described(descriptor, mode, *args, **kwargs)
        return handle if set(mode) & set("wax+") else _Reading(handle, descriptor, check)

    replace(io, "open", opening)
    replace(builtins, "open", opening)
    replace(os, "open", os_opening)
    replace(os, "fdopen", describing)


class _Reading:
    """A file whose `read` may fail."""

    def __init__(self, handle: Any, path: Any, check: Callable[[str, Any], None]) -> None:
        self._handle, self._path, self._check = handle, path, check

    def __getattr__(self, name: str) -> Any:
        if name in ("read", "readline", "readinto"):
            self._check("read", self._path)
        return getattr(self._handle, name)

    def __enter__(self) -> "_Reading":
        self._handle.__enter__()
        return self

    def __exit__(self, *error: Any) -> Any:
        return self._handle.__exit__(*error)

    def __iter__(self) -> Any:
        self._check("read", self._path)
        return iter(self._handle)


def _name(path: Any) -> str:
    """The path that a call is made on, also by the number of its file."""
    if isinstance(path, int) or hasattr(path, "fileno"):
        try:
            return str(Path(f"/proc/self/fd/{path if isinstance(path, int) else path.fileno()}").readlink())
        except OSError:
            return ""
    return os.fsdecode(path)
