"""Inside a process of a run: notes every call that changes the run's folder, and stops the run at one of them.

`install` wraps the calls in the process that calls it; processes forked from it inherit the wrapping. The package under
test knows nothing of it. The notes of all processes go to one file, a line per call, appended before the call is made.
"""

import builtins
import functools
import io
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

When = Literal["before", "after", "half"]
Victim = Literal["process", "tree", "power", "server", "runner+server", "SIGTERM", "SIGINT", "SIGINT twice"]
WRITES = ("write", "save")
HALVES = (*WRITES, "rmtree")
"""Kinds of calls that can be stopped in the middle: half of the bytes written, half of the files removed."""
REACHED = "reached"
ORPHAN = "orphan"
ORPHAN_SECONDS = 3.0
"""A worker that still runs this long after the death of all other processes works for nobody."""


class Point(NamedTuple):
    """A call that changes the folder.

    Attributes:
        role: runner or worker.
        kind: what is called: fsync, rename, link, symlink, mkdir, unlink, rmtree, write (a file opened from Python is
            closed), save (a library writes a file).
        path: below the folder; process ids and numbers of attempts are left out, so that it names the same place in
            every run.
    """

    role: str
    kind: str
    path: str


class Fault(NamedTuple):
    """What to do to a run, and where.

    Attributes:
        nth: the how-manieth call at this point. For the kind `time`: milliseconds after the start.
        victim: who gets SIGKILL: `process` is the one that makes the call, `tree` all of them, `power` all of them and
            whatever was written without fsync is lost; `server` the fork server, `runner+server` all but the worker.
            Or the signal that the runner gets.
    """

    role: str
    kind: str
    path: str
    nth: int
    when: When
    victim: Victim

    @property
    def point(self) -> Point:
        """Where."""
        return Point(self.role, self.kind, self.path)


class Note(NamedTuple):
    """A line of the notes: a call at `point`, on `path` (below the folder), or with `renamed_to` from there."""

    pid: int
    point: Point
    path: str
    renamed_to: str


def place(path: str) -> str:
    """A path without what differs from run to run."""
    path = re.sub(r"attempts/\d+", "attempts/N", path)
    return re.sub(r"(/|^)(\..+?)\.[^./]+\.tmp$", r"\1\2.tmp", path)


def read_notes(file: Path) -> list[Note]:
    """The calls."""
    found = []
    for line in file.read_text().splitlines() if file.exists() else []:
        pid, role, kind, path, target = line.split("\t")
        if kind not in (REACHED, ORPHAN):
            found.append(Note(int(pid), Point(role, kind, place(path)), path, target))
    return found


def _words(file: Path, word: str) -> list[str]:
    """What notes of that kind say."""
    lines = [line.split("\t") for line in file.read_text().splitlines()] if file.exists() else []
    return [line[3] for line in lines if line[2] == word]


def reached(file: Path) -> Fault | None:
    """The fault that took place."""
    found = _words(file, REACHED)
    return Fault(*json.loads(found[0])) if found else None


def left_alone(file: Path) -> bool:
    """Whether a worker went on when nobody waited for it any more."""
    return bool(_words(file, ORPHAN))


class _Watch:
    """The state of this process: where notes go, and what is to happen."""

    def __init__(self, folder: Path, notes: Path, armed: Sequence[Fault]) -> None:
        self.folder, self.notes, self.armed = str(folder.resolve()) + os.sep, notes, armed
        self.runner = os.getpid()
        self.started: list[int] = []  # leaders of the groups that the runner started
        self._inside = False

    def role(self) -> str:
        return "runner" if os.getpid() == self.runner else "worker"

    def call(self, kind: str, path: str | None, do: Callable[[], Any], half: Callable[[], None], target: str) -> Any:
        """Note a call and make it, unless this is where the run is stopped."""
        if path is None or self._inside or not path.startswith(self.folder):
            return do()
        self._inside = True  # a library's call may be made of others
        try:
            fault = self._note(kind, path, target)
            if fault is None:
                return do()
            if fault.when == "before":
                self._strike(fault)
            if fault.when == "half" and kind == "rmtree":
                half()
                self._strike(fault)
            result = do()
            if fault.when == "half":
                half()
            if fault.when in ("half", "after"):
                self._strike(fault)
            return result
        finally:
            self._inside = False

    def _note(self, kind: str, path: str, target: str) -> Fault | None:
        """Append the note; the fault whose call it is, if there is one."""
        below = path.removeprefix(self.folder)
        self._append(kind, below, target.removeprefix(self.folder))
        here = [fault for fault in self.armed if fault.point == Point(self.role(), kind, place(below))]
        if not here or reached(self.notes) is not None:
            return None
        made = sum(note.point == here[0].point for note in read_notes(self.notes))
        return next((fault for fault in here if fault.nth == made), None)

    def _append(self, kind: str, path: str, target: str = "") -> None:
        line = f"{os.getpid()}\t{self.role()}\t{kind}\t{path}\t{target}\n"
        descriptor = os.open(self.notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, line.encode())
        os.close(descriptor)

    def _strike(self, fault: Fault) -> None:
        """Stop what the fault says. Returns if this process is not among it."""
        self._append(REACHED, json.dumps(fault))
        victim = fault.victim
        is_runner = os.getpid() == self.runner
        if victim in ("SIGTERM", "SIGINT", "SIGINT twice"):
            os.kill(self.runner, signal.SIGTERM if victim == "SIGTERM" else signal.SIGINT)
            if victim == "SIGINT twice":
                time.sleep(0.02)
                os.kill(self.runner, signal.SIGINT)
            return
        if victim == "process":
            os.kill(os.getpid(), signal.SIGKILL)
        leaders = self.started if is_runner else [os.getpgrp()]
        if victim in ("server", "runner+server"):
            for leader in leaders:
                os.kill(leader, signal.SIGKILL)
            if victim == "runner+server":
                os.kill(self.runner, signal.SIGKILL)
                time.sleep(ORPHAN_SECONDS)
                self._append(ORPHAN, "")
            return
        if not is_runner:
            os.kill(self.runner, signal.SIGKILL)
        for leader in leaders:
            os.killpg(leader, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)


_watch: _Watch | None = None


def install(folder: Path, notes: Path, armed: Sequence[Fault]) -> None:
    """Watch this process, which is the runner, and those that it will fork; stop at the first of the `armed` faults."""
    global _watch
    _watch = _Watch(folder, notes, armed)
    for name in ("rename", "replace", "link"):
        _wrap(os, name, "rename" if name == "replace" else name, _first, has_target=True)
    for name in ("mkdir", "unlink"):
        _wrap(os, name, name, _first)
    os.remove = os.unlink
    _wrap(os, "symlink", "symlink", _second)
    _wrap(os, "fsync", "fsync", _descriptor)
    _wrap(shutil, "rmtree", "rmtree", _first)
    _wrap_libraries()
    builtins.open = io.open = _opening(io.open)


def started_group(leader: int) -> None:
    """The runner started a process group."""
    assert _watch is not None
    _watch.started.append(leader)


def _wrap_libraries() -> None:
    """Functions that write files without Python's `open`, of the libraries that are imported."""
    modules = ("torch", "save"), ("safetensors.torch", "save_file"), ("pyarrow.parquet", "write_table")
    for module, function in modules:
        if module in sys.modules:
            _wrap(sys.modules[module], function, "save", _second)
    if "transformers.modeling_utils" in sys.modules:  # has its own name for it
        sys.modules["transformers.modeling_utils"].safe_save_file = sys.modules[  # type: ignore[attr-defined]
            "safetensors.torch"
        ].save_file


def _first(arguments: tuple[Any, ...]) -> str | None:
    return _absolute(arguments[0])


def _second(arguments: tuple[Any, ...]) -> str | None:
    return _absolute(arguments[1]) if len(arguments) > 1 else None


def _descriptor(arguments: tuple[Any, ...]) -> str | None:
    return str(Path(f"/proc/self/fd/{arguments[0]}").readlink())


def _absolute(path: Any) -> str | None:
    return os.path.abspath(os.fspath(path)) if isinstance(path, str | os.PathLike) else None  # noqa: PTH100


def _wrap(
    module: Any, name: str, kind: str, path_of: Callable[[tuple[Any, ...]], str | None], *, has_target: bool = False
) -> None:
    original = getattr(module, name)

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        assert _watch is not None
        path = None if "dir_fd" in kwargs else path_of(args)
        target = (_second(args) or "") if has_target else ""
        half = functools.partial(_remove_half if kind == "rmtree" else _cut, path, 0)
        return _watch.call(kind, path, lambda: original(*args, **kwargs), half, target)

    setattr(module, name, wrapped)


def _opening(original: Callable[..., Any]) -> Callable[..., Any]:
    """`open`, with a point where a file that was opened for writing is closed."""

    @functools.wraps(original)
    def opening(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        handle = original(file, mode, *args, **kwargs)
        if not set(mode) & set("wax+"):
            return handle
        path = _descriptor((file,)) if isinstance(file, int) else _absolute(file)
        before = os.fstat(handle.fileno()).st_size
        close = handle.close

        def closing() -> None:
            assert _watch is not None
            if not handle.closed:
                _watch.call("write", path, close, functools.partial(_cut, path, before), "")

        handle.close = closing
        return handle

    return opening


def _cut(path: str | None, start: int) -> None:
    """Keep the first half of what was written behind `start`."""
    assert path is not None
    os.truncate(path, start + (os.stat(path).st_size - start) // 2)  # noqa: PTH116


def _remove_half(path: str | None, _: int) -> None:
    files = sorted(file for file in Path(path or "").rglob("*") if file.is_file())
    for file in files[::2]:
        file.unlink()


def lose_unsynced(folder: Path, notes: Path, fault: Fault) -> list[str]:
    """Do to the folder what a power loss does: of every file that was written and not synced, half is there.

    Returns the files that lost something.
    """
    dirty: dict[str, None] = {}
    synced: dict[int, str] = {}  # what a process synced in its call before
    lines = read_notes(notes)
    if fault.kind == "time":  # a process may have died in its last call
        last = {note.pid: i for i, note in enumerate(lines)}
        lines = [note for i, note in enumerate(lines) if last[note.pid] != i or note.point.kind != "fsync"]
    elif fault.when == "before":
        lines = lines[: _index(lines, fault)] + lines[_index(lines, fault) + 1 :]  # that call was not made
    for note in lines:
        # A file that is closed right after it was synced has nothing left to write.
        if note.point.kind in WRITES and synced.get(note.pid) != note.path:
            dirty[note.path] = None
        elif note.point.kind == "fsync":
            dirty.pop(note.path, None)
        elif note.point.kind == "rename":
            moved = [name for name in dirty if name == note.path or name.startswith(note.path + "/")]
            for name in moved:
                del dirty[name]
                dirty[note.renamed_to + name.removeprefix(note.path)] = None
        synced[note.pid] = note.path if note.point.kind == "fsync" else ""
    lost = [name for name in dirty if (folder / name).is_file()]
    for name in lost:
        file = folder / name
        # Earlier lines of a file that grows line by line are old enough to be on the disk.
        grows = file.name in ("events.jsonl", "progress.jsonl")
        start = file.read_bytes()[:-1].rfind(b"\n") + 1 if grows else 0
        _cut(str(file), start)
    return lost


def _index(lines: list[Note], fault: Fault) -> int:
    """Which note is the fault's."""
    return [i for i, note in enumerate(lines) if note.point == fault.point][fault.nth - 1]
