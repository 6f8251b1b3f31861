"""Work in threads of this process that share the processor's cores."""

import contextlib
import ctypes
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Input = TypeVar("Input")
Output = TypeVar("Output")


def side_by_side(work: Callable[[Input], Output], inputs: Sequence[Input], at_once: int) -> Iterator[Output]:
    """Yield `work(input)` for each input, in order, with several of them in work at once.

    torch's threads are shared among them. On small matrices one thread each is faster than all of them on one input
    after the other: nothing waits for the slowest thread after every operation.

    Args:
        work: called in other threads, where gradients are on until it says otherwise.
        inputs: all of them.
        at_once: most inputs in work at once; torch's number of threads is the limit.

    Raises:
        Exception: the first that `work` raised; no input is begun after it.
    """
    threads = torch.get_num_threads()
    at_once = min(at_once, threads, len(inputs))
    if at_once <= 1:
        yield from map(work, inputs)
        return
    failures: list[BaseException] = []

    def unless_failed(value: Input) -> Output:
        if failures:  # whoever waits for an earlier input has not seen it yet
            raise failures[0]
        try:
            return work(value)
        except BaseException as error:
            failures.append(error)
            raise

    pool = ThreadPoolExecutor(at_once, initializer=torch.set_num_threads, initargs=(threads // at_once,))
    try:
        yield from pool.map(unless_failed, inputs)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # parts of it hold for the whole process


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # as <malloc.h> has them


def keep_freed_memory() -> None:
    """Keep what tensors of up to 32 MiB leave behind for the next ones; in this process, until it ends.

    glibc gives the memory that a thread frees back to the system, and the next operation waits while it is handed out
    and zeroed again, page by page. Other C libraries have no such setting.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, 32 << 20)
        mallopt(M_TRIM_THRESHOLD, 1 << 30)
