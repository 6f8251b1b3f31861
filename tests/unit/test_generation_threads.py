"""Work in threads: order, torch's threads, failures, and memory that is not handed back and forth."""

import threading
import time

import pytest
import torch

from spa_recipes.generation.threads import side_by_side


@pytest.fixture(autouse=True)
def four_threads() -> object:
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("at_once", "inputs", "each"), [(2, 9, 2), (3, 9, 1), (8, 9, 1), (8, 2, 2), (1, 5, 4), (0, 2, 4)]
)
def test_results_come_in_order_from_threads_that_share_the_cores(at_once: int, inputs: int, each: int) -> None:
    seen = set()

    def work(number: int) -> int:
        seen.add((threading.get_ident(), torch.get_num_threads()))
        return number * 10

    assert list(side_by_side(work, range(inputs), at_once)) == [10 * number for number in range(inputs)]
    assert {count for _, count in seen} == {each}
    assert 1 <= len(seen) <= max(1, min(at_once, inputs, 4))
    assert (threading.get_ident() in {ident for ident, _ in seen}) == (at_once < 2)
    assert torch.get_num_threads() == 4


def test_what_fails_in_a_thread_fails_here_and_the_rest_is_left() -> None:
    begun, failing = [], threading.Event()

    def work(number: int) -> int:
        begun.append(number)
        if number == 3:
            failing.set()
            raise ValueError("three")
        if number > 3:
            failing.wait()
            time.sleep(0.2)
        return number

    results = side_by_side(work, range(1000), 2)
    with pytest.raises(ValueError, match="three"):
        list(results)
    assert len(begun) < 10
    assert torch.get_num_threads() == 4
    assert not any("ThreadPool" in thread.name for thread in threading.enumerate())


def test_what_was_in_work_before_a_failure_is_given_first() -> None:
    failing = threading.Event()

    def work(number: int) -> int:
        if number == 1:
            failing.set()
            raise ValueError("one")
        assert failing.wait(60)
        return number

    results = side_by_side(work, range(50), 2)
    assert next(results) == 0
    with pytest.raises(ValueError, match="one"):
        next(results)
