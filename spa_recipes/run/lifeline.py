"""Ties a process to the one that started it, by a pipe as its standard input: no orphan holds a GPU.

The writing end is with the starter alone, so the pipe ends when that one does, however it ends. All that is on disk is
atomic, so everything may end at once.
"""

import contextlib
import fcntl
import os
import signal
import stat
import sys
import threading

if sys.platform == "linux":
    from fcntl import F_SETSIG
else:
    F_SETSIG = None


def end_with_starter(*, leader: int | None = None) -> None:
    """From now on, end this process when its standard input ends, with its whole group where that is its own.

    Args:
        leader: of the group that ends, where it is another process that nothing but this stage depends on.
    """
    ends_group = os.getpgrp() == (os.getpid() if leader is None else leader)
    threading.Thread(target=_wait_and_end, args=(ends_group,), daemon=True).start()
    _ask_the_kernel(ends_group)


def _wait_and_end(ends_group: bool) -> None:
    """Block until standard input ends, then end at once."""
    with contextlib.suppress(OSError):
        while os.read(0, 1024):
            pass
    if ends_group:
        os.killpg(0, signal.SIGKILL)
    os._exit(128 + signal.SIGTERM)


def _ask_the_kernel(ends_group: bool) -> None:
    """Let Linux send the signal itself: a library that spins with Python's lock held keeps the thread from running.

    The pipe is opened anew, since whom the kernel sends a signal to belongs to an open pipe, which processes share.
    """
    if F_SETSIG is None or not stat.S_ISFIFO(os.fstat(0).st_mode):
        return
    with contextlib.suppress(OSError):
        pipe = os.open("/proc/self/fd/0", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.fcntl(pipe, fcntl.F_SETOWN, -os.getpgrp() if ends_group else os.getpid())
        fcntl.fcntl(pipe, F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(pipe, fcntl.F_SETFL, os.O_RDONLY | os.O_NONBLOCK | os.O_ASYNC)
