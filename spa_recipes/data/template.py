"""Runs a template within limits. A template is a program: it may never end, or build a text of any size.

Jinja's sandbox keeps a template from files and from Python's inside; it limits neither time nor memory.
"""

import ctypes
import queue
import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

MAX_FILE_BYTES = 1024 * 1024
"""No template is larger."""
MAX_SECONDS = 10.0
"""CPU time of one rendering, which takes milliseconds."""
WATCH_SECONDS = 0.05
MAX_MEMORY_BYTES = 512 * 1024 * 1024
MAX_CHARACTERS = 64 * 1024 * 1024


class EndlessTemplateError(Exception):
    """A template goes beyond a limit."""


_one_at_a_time = threading.Lock()
"""Rendering holds Python's lock anyway, and the limit of memory is that of the process."""


def render(template: Callable[[], str]) -> str:
    """The text of a template, which `template` renders; in any thread.

    Raises:
        EndlessTemplateError: it runs for too long, or grows too large.
        Exception: whatever the template itself fails with.
    """
    try:
        with _one_at_a_time, _limited_memory(), _limited_time():  # the time ends first, so that memory is given back
            text = template()
    except MemoryError:
        raise EndlessTemplateError(f"it takes more memory than {MAX_MEMORY_BYTES // 1024**2} MiB") from None
    if len(text) > MAX_CHARACTERS:
        raise EndlessTemplateError(f"its text has more than {MAX_CHARACTERS:,} characters")
    return text


@contextmanager
def _limited_time() -> Iterator[None]:
    """Raise EndlessTemplateError in this thread, inside the block, once it has used up its time."""
    limit = _Limit(threading.get_ident())
    _watch(limit)
    try:
        yield
    except EndlessTemplateError:  # Python raises the bare class
        raise EndlessTemplateError(f"it runs for more than {MAX_SECONDS:g} s") from None
    finally:
        limit.end()


class _Limit:
    """The time of a block of code: CPU time of its thread, or of the process where a thread's is not known."""

    def __init__(self, thread: int) -> None:
        self._thread, self._lock, self._ended = thread, threading.Lock(), False
        own = time.pthread_getcpuclockid(thread) if hasattr(time, "pthread_getcpuclockid") else None
        self._used = time.process_time if own is None else partial(time.clock_gettime, own)
        self._end = self._used() + MAX_SECONDS

    def is_over(self) -> bool:
        """Whether there is nothing more to watch: the block has ended, or is ended now."""
        with self._lock:
            if not self._ended and self._used() > self._end:
                _raise_in(self._thread, EndlessTemplateError)
                self._ended = True
            return self._ended

    def end(self) -> None:
        """The block has ended: what was not raised in it is raised nowhere else."""
        with self._lock:
            if self._ended:
                _raise_in(self._thread, None)
            self._ended = True


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    """Have another thread raise an error as soon as it runs Python code; None takes one back that it has not raised."""
    found = ctypes.py_object(error) if error is not None else None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), found)


class _Watcher:
    """A thread that looks at limits until they are over."""

    def __init__(self) -> None:
        self.limits: queue.SimpleQueue[_Limit] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        while True:
            limit = self.limits.get()
            while not limit.is_over():
                time.sleep(WATCH_SECONDS)


_watchers: list[_Watcher] = []
"""The one of this process; a process that was forked has none of its parent's threads."""


def _watch(limit: _Limit) -> None:
    if not any(watcher.thread.is_alive() for watcher in _watchers):
        _watchers[:] = [_Watcher()]
    _watchers[0].limits.put(limit)


@contextmanager
def _limited_memory() -> Iterator[None]:
    """Limit what the process may add to its memory; where the system tells no size, only the text is limited."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[5])
    except (OSError, ValueError, IndexError):
        yield
        return
    before, highest = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = pages * resource.getpagesize() + MAX_MEMORY_BYTES
    if any(limit != resource.RLIM_INFINITY and limit < wanted for limit in (before, highest)):
        yield  # the system's own limit is the lower one
        return
    resource.setrlimit(resource.RLIMIT_DATA, (wanted, highest))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (before, highest))
