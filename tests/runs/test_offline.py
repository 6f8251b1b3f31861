"""Without a network, what is missing is one clear line."""

from pathlib import Path

from tests.kit.cli import run_python


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
    done = run_python(tmp_path, code, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stdout + done.stderr
    for line, kind in zip(lines, ("dataset", "model"), strict=True):
        assert line.startswith(f"nobody/nothing: the {kind} is neither on this disk nor in the cache of HF_HOME")
        assert "unset HF_HUB_OFFLINE" in line
