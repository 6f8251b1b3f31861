"""Runs a template within limits. A template is a program: it may never end, or build a text of any size.

Jinja's sandbox keeps a template from files and from Python's inside; it limits neither time nor memory.
"""

import resource
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

MAX_FILE_BYTES = 1024 * 1024
"""No template is larger."""
MAX_SECONDS = 10.0
"""CPU time of one rendering, which takes milliseconds."""
MAX_MEMORY_BYTES = 512 * 1024 * 1024
MAX_CHARACTERS = 64 * 1024 * 1024


class EndlessTemplateError(Exception):
    """A template goes beyond a limit."""


def render(template: Callable[[], str]) -> str:
    """The text of a template, which `template` renders.

    The time is limited in the main thread only, where stages render: signals reach no other one.

    Raises:
        EndlessTemplateError: it runs for too long, or grows too large.
        Exception: whatever the template itself fails with.
    """
    try:
        with _limited_time(), _limited_memory():
            text = template()
    except MemoryError:
        raise EndlessTemplateError(f"it takes more memory than {MAX_MEMORY_BYTES // 1024**2} MiB") from None
    if len(text) > MAX_CHARACTERS:
        raise EndlessTemplateError(f"its text has more than {MAX_CHARACTERS:,} characters")
    return text


@contextmanager
def _limited_time() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise EndlessTemplateError(f"it runs for more than {MAX_SECONDS:g} s")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, MAX_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


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
