"""Memory that runs out is recognised, whoever says so; test_run_states shows the advice that a stage gives then."""

import errno

import pytest
import torch

from spa_recipes.models.memory import is_out_of_memory


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("x"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:113] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
    ids=repr,
)
def test_memory_that_ran_out_is_recognised(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("other"), OSError(errno.ENOSPC, "No space left on device"), ValueError("out of memory, he said")],
    ids=repr,
)
def test_other_errors_are_not(error: Exception) -> None:
    assert not is_out_of_memory(error)
