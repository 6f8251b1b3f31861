"""Work in threads of this process that share the processor's cores."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Input = TypeVar("Input")
Output = TypeVar("Output")


def side_by_side(work: Callable[[Input], Output], inputs: Sequence[Input], at_once: int) -> Iterator[Output]:
    """What `work` gives for each input, in their order, several of them in work at a time.

    torch's threads are shared among them. On small matrices one thread each is faster than all of them on one input
    after the other: nothing waits for the slowest thread after every operation.

    Args:
        work: called in other threads, where gradients are on until it says otherwise.
        inputs: all of them.
        at_once: inputs in work at most; no more than torch has threads.
    """
    threads = torch.get_num_threads()
    at_once = min(at_once, threads, len(inputs))
    if at_once <= 1:
        yield from map(work, inputs)
        return
    pool = ThreadPoolExecutor(at_once, initializer=torch.set_num_threads, initargs=(threads // at_once,))
    try:
        yield from pool.map(work, inputs)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # parts of it hold for the whole process
