"""What stays out of processes that do not need it."""

import subprocess
import sys
from pathlib import Path

from tests.kit.data_forms import write_jsonl
from tests.kit.recipes import mini, write_recipe


def imported(code: str, *names: str) -> str:
    """Those of the libraries that a fresh process has imported after some code."""
    code = f"{code}\nimport sys\nprint([name for name in {names!r} if name in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_planning_imports_nothing_heavy(tmp_path: Path) -> None:
    """Reading rows takes pyarrow, which holds them; that is left to the stage."""
    path = write_jsonl(tmp_path, [{"prompt": "What?", "chosen": "That.", "rejected": "No."}])
    planning = f"""
from pathlib import Path
import spa_recipes.data.chat
from spa_recipes.data.places import content_fingerprint, count_rows
from spa_recipes.data.sources import read_pairs
from spa_recipes.recipe.schema import DatasetSource
from spa_recipes.state.digests import DigestMemo
source = DatasetSource(source={str(path)!r})
content_fingerprint(source, DigestMemo(Path("nowhere/memo")).of), count_rows(source)
"""
    assert imported(planning, "torch", "transformers", "datasets", "pyarrow", "numpy") == "[]"
    reading = planning + "read_pairs(source); import spa_recipes.data.split"
    assert imported(reading, "torch", "transformers", "datasets") == "[]"


def test_a_recipe_is_read_without_any_library_that_is_slow_to_import(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", mini())
    code = f"""
from pathlib import Path
from spa_recipes.recipe.load import load_recipe, recipe_schema
load_recipe(Path({str(recipe)!r}))
recipe_schema()
try:
    load_recipe(Path({str(recipe)!r}), ["noise.alpha=9"])
except Exception:
    pass
"""
    heavy = ("torch", "transformers", "datasets", "trl", "vllm", "accelerate", "pyarrow", "numpy", "typer", "rich")
    assert imported(code, *heavy) == "[]"


def test_the_sandbox_needs_the_standard_library_only() -> None:
    code = "from spa_recipes.sandbox import gold, model, rows, words, world; rows.preference_rows(3, 0)"
    assert imported(code, "torch", "transformers", "tokenizers", "numpy", "datasets") == "[]"


def test_the_metadata_of_packages_is_read_when_something_of_it_is_used() -> None:
    """Whoever imports it by any spelling before that has the real thing, too."""
    code = """
from spa_recipes.cli import metadata
metadata.read_when_called()
import importlib.metadata, importlib.metadata as spelled, sys
from importlib import metadata as listed
from importlib.metadata import entry_points
assert "email" not in sys.modules
assert {point.name for point in entry_points(group="console_scripts")} >= {"typer"}
assert "email" in sys.modules
from importlib.metadata import PackageNotFoundError
for module in (importlib.metadata, spelled, listed, sys.modules["importlib.metadata"]):
    assert module.version("typer")
    assert module.PackageNotFoundError is PackageNotFoundError
"""
    assert imported(code) == "[]"
