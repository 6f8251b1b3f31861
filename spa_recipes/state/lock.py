"""A lock on a folder, which one process holds at a time.

With flock the operating system frees the lock when its holder dies, however it dies. But some network drives have no
flock, and on others it is known to one machine only. So there is a lease beside it: a file that is made with O_EXCL and
renewed by its holder. A lease that was not renewed for its length is free, and so is one whose holder is known to be
dead: it died on this machine, or it was an earlier start of the same Slurm job.
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

from spa_recipes.state import atomic

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

    It can be lost by a process that slept for longer than the lease, as with a machine that was suspended.

    Raises:
        TakenError: another process holds it.
        OSError: nothing can be written there.
    """
    descriptor = os.open(folder / FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    try:
        lease = _Lease(folder, has_flock=_flock(descriptor))
        lease.take()
        try:
            yield lease.check
        finally:
            lease.give_back()
    finally:
        os.close(descriptor)


def is_held(folder: Path) -> bool:
    """Whether a process holds the lock. Writes nothing: a folder can be looked at where nobody may write."""
    try:
        descriptor = os.open(folder / FILE, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        has_flock = True
    except BlockingIOError:
        return True
    except OSError:  # no flock on this file system
        has_flock = False
    finally:
        os.close(descriptor)
    return _is_leased(folder, time.time(), has_flock=has_flock)


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
    """The lock by a file, renewed in a thread.

    With flock, a full disk may keep it from being written: `spa gc` has to work there.
    """

    def __init__(self, folder: Path, *, has_flock: bool) -> None:
        self._folder, self._path, self._has_flock = folder, folder / LEASE, has_flock
        self._token = uuid.uuid4().hex
        holder = {"token": self._token, "machine": _machine(), "pid": os.getpid(), "boot": _boot(), **_job()}
        self._content = json.dumps({**holder, "flock": has_flock}).encode()
        self._renewed = time.monotonic()
        self._end, self._is_lost = threading.Event(), False
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def take(self) -> None:
        """Make the file, or replace one that ran out, and begin to renew it."""
        try:
            self._make()
        except FileExistsError:
            self._take_over()
        except OSError as error:
            if not (self._has_flock and error.errno in (errno.ENOSPC, errno.EDQUOT)):
                raise
            self._path.unlink(missing_ok=True)
            return
        self._renewed = time.monotonic()
        self._thread.start()

    def _make(self) -> None:
        with os.fdopen(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as handle:
            handle.write(self._content)

    def _take_over(self) -> None:
        temporary = atomic.temporary_name(self._path)
        temporary.write_bytes(self._content)
        now = temporary.stat().st_mtime  # by the clock of the drive, which dates the lease as well
        try:
            if _is_leased(self._folder, now, has_flock=self._has_flock):
                raise TakenError
            was_here = self._has_flock and _read(self._path).get("boot") == _boot()
            temporary.replace(self._path)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        if not was_here:  # nobody else of this machine does the same while this process has the flock
            time.sleep(SETTLE_SECONDS)
        if _read(self._path).get("token") != self._token:
            raise TakenError

    def check(self) -> None:
        """Raise `TakenError` if the lease ran out or another process has it."""
        overdue = time.monotonic() - self._renewed > LEASE_SECONDS
        if self._is_lost or (overdue and self._thread.is_alive() and not (self._has_flock and self._is_ours())):
            raise TakenError

    def give_back(self) -> None:
        """Free the lock."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._is_ours():
            with suppress(OSError):
                self._path.unlink()

    def _is_ours(self) -> bool:
        return _read(self._path).get("token") == self._token

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


def _is_leased(folder: Path, now: float, *, has_flock: bool) -> bool:
    """Whether there is a lease that did not run out, and whose holder is not known to be dead.

    Args:
        has_flock: whether this process got the flock.
    """
    path = folder / LEASE
    try:
        renewed = path.stat().st_mtime
    except OSError:
        return False
    if now - renewed > LEASE_SECONDS:
        return False
    holder = _read(path)
    if has_flock and holder.get("flock") and holder.get("boot") == _boot():
        return False  # the holder would have the flock if it lived
    if (job := _job()) and holder.get("job") == job["job"] and holder.get("start", 0) < job["start"]:
        return False
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


def _boot() -> str:
    """Names this start of this machine, whichever container asks; empty where nobody can tell."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _job() -> dict[str, Any]:
    """The Slurm job that this process is in, and how often it was started again; empty outside of one."""
    job = os.environ.get("SLURM_JOB_ID")
    return {} if job is None else {"job": job, "start": int(os.environ.get("SLURM_RESTART_COUNT") or 0)}


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
