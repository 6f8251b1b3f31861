"""A lock on a folder, which one process holds at a time.

With flock the operating system frees the lock when its holder dies, however it dies. Some network drives have no flock.
There the lock is a file that is made with O_EXCL and renewed by its holder: one that was not renewed for the length of
the lease is free, and so is one whose holder is known to have died on this machine.
"""

import errno
import fcntl
import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

FILE, LEASE = ".lock", ".lease"
LEASE_SECONDS, RENEW_SECONDS = 120.0, 10.0
SETTLE_SECONDS = 1.0
"""After taking over a lease that ran out, the time in which another process that does the same shows itself."""
PATIENCE = 0.5
"""Seconds to wait for a lock, since `is_held` of another process takes it for a moment."""

NO_FLOCK = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL})


class TakenError(Exception):
    """Another process holds the lock."""


@contextmanager
def hold(folder: Path) -> Iterator[Callable[[], None]]:
    """Hold the lock of a folder. Yields a check, to be called now and then, which raises `TakenError` if it was lost.

    Only a lease can be lost: by a process that slept for longer than it, as with a machine that was suspended.

    Raises:
        TakenError: another process holds it.
        OSError: nothing can be written there.
    """
    descriptor = os.open(folder / FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    try:
        if _flock(descriptor):
            if _is_leased(folder, time.time()):  # by a machine that has no flock on this drive
                raise TakenError
            yield lambda: None
            return
    finally:
        os.close(descriptor)
    lease = _Lease(folder)
    lease.take()
    try:
        yield lease.check
    finally:
        lease.give_back()


def is_held(folder: Path) -> bool:
    """Whether a process holds the lock. Writes nothing: a folder can be looked at where nobody may write."""
    try:
        descriptor = os.open(folder / FILE, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no flock on this file system
        pass
    finally:
        os.close(descriptor)
    return _is_leased(folder, time.time())


def _flock(descriptor: int) -> bool:
    """Lock a file; False where the file system has no flock.

    Raises:
        TakenError: another process has locked it.
        OSError: any other error.
    """
    end = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > end:
                raise TakenError from None
            time.sleep(0.02)
        except OSError as error:
            if error.errno in NO_FLOCK:
                return False
            raise


class _Lease:
    """The lock by a file, renewed in a thread."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._path = folder, folder / LEASE
        self._token = uuid.uuid4().hex
        self._content = json.dumps({"token": self._token, "machine": _machine(), "pid": os.getpid()}).encode()
        self._renewed = time.monotonic()
        self._end, self._is_lost = threading.Event(), False
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def take(self) -> None:
        """Make the file, or replace one that ran out, and begin to renew it."""
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            self._take_over()
        else:
            with os.fdopen(descriptor, "wb") as handle:
                handle.write(self._content)
        self._renewed = time.monotonic()
        self._thread.start()

    def _take_over(self) -> None:
        temporary = self._folder / f".{LEASE}.{os.getpid()}.tmp"
        temporary.write_bytes(self._content)
        now = temporary.stat().st_mtime  # by the clock of the drive, which dates the lease as well
        try:
            if _is_leased(self._folder, now):
                raise TakenError
            temporary.replace(self._path)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        time.sleep(SETTLE_SECONDS)
        if _read(self._path).get("token") != self._token:
            raise TakenError

    def check(self) -> None:
        """Raise `TakenError` if the lease ran out or another process has it."""
        if self._is_lost or time.monotonic() - self._renewed > LEASE_SECONDS:
            raise TakenError

    def give_back(self) -> None:
        """Free the lock."""
        self._end.set()
        self._thread.join()
        if _read(self._path).get("token") == self._token:
            with suppress(OSError):
                self._path.unlink()

    def _renew(self) -> None:
        while not self._end.wait(RENEW_SECONDS):
            try:
                with self._path.open("r+b") as handle:
                    if handle.read() != self._content:
                        self._is_lost = True
                        return
                    handle.seek(0)
                    handle.write(self._content)  # the drive notes the time
                self._renewed = time.monotonic()
            except FileNotFoundError:
                self._is_lost = True
                return
            except OSError:  # the drive may come back before the lease runs out
                continue


def _is_leased(folder: Path, now: float) -> bool:
    """Whether there is a lease that did not run out, and whose holder is not known to be dead."""
    path = folder / LEASE
    try:
        renewed = path.stat().st_mtime
    except OSError:
        return False
    if now - renewed > LEASE_SECONDS:
        return False
    holder = _read(path)
    return holder.get("machine") != _machine() or _is_alive(holder.get("pid"))


def _read(path: Path) -> dict[str, Any]:
    """What a lease says; nothing where it cannot be read."""
    with suppress(OSError, ValueError):
        with path.open("rb") as handle:
            value = json.loads(handle.read(1024))
        return value if isinstance(value, dict) else {}
    return {}


def _machine() -> str:
    """Names this start of this machine, and the container that has process ids of its own."""
    parts = [os.uname().nodename]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def _is_alive(pid: object) -> bool:
    """Whether a process of this machine runs; True for what is no process id."""
    if not isinstance(pid, int):
        return True
    with suppress(PermissionError, OverflowError):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
    return True
