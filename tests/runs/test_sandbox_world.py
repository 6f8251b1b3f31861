"""The sandbox's world is the same in every process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.sandbox import digest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("hash_seed", ["1", "4242"])
def test_other_processes_make_the_same_world(hash_seed: str) -> None:
    code = "from tests.kit.sandbox import digest; print(digest())"
    env = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == digest()
