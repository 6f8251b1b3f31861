"""Memory that a process has freed is used again."""

import platform
import subprocess
import sys

import pytest

ALLOCATE = """
import resource, torch
from spa_recipes.generation.threads import keep_freed_memory, side_by_side
torch.set_num_threads(2)
keep_freed_memory()
def work(_):
    for _ in range(5):
        held = [torch.ones(750_000) for _ in range(10)]
        del held
list(side_by_side(work, range(4), 2))
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
list(side_by_side(work, range(4), 2))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_freed_memory_is_used_again() -> None:
    """200 tensors of 730 pages each, ten at a time; a few of them are new."""
    answer = subprocess.run([sys.executable, "-c", ALLOCATE], capture_output=True, text=True, check=True)
    assert int(answer.stdout) < 40 * 730
