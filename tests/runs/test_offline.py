"""Without a network, what is missing is one clear line."""

import os
import subprocess
import sys
from pathlib import Path


def test_offline_is_one_clear_line(tmp_path: Path) -> None:
    code = """
from spa_recipes.data.sources import read_pairs
from spa_recipes.data.chat import load_tokenizer
from spa_recipes.errors import DataError
from spa_recipes.recipe.schema import DatasetSource
for read in (lambda: read_pairs(DatasetSource(source="nobody/nothing")), lambda: load_tokenizer("nobody/nothing")):
    try:
        read()
    except DataError as error:
        print(error)
"""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stdout + done.stderr
    for line, kind in zip(lines, ("dataset", "model"), strict=True):
        assert line.startswith(f"nobody/nothing: the {kind} is neither on this disk nor in the cache of HF_HOME")
        assert "unset HF_HUB_OFFLINE" in line
