"""A small recipe as text, and how a test reads one."""

from pathlib import Path

from spa_recipes.recipe.load import (
    load_recipe,
)
from spa_recipes.recipe.schema import Recipe

BASE = """\
name: x
model:
  model_name_or_path: m
data:
  pairs: {type: dataset, source: a.jsonl}
"""


def read(text: str | bytes, *overrides: str) -> Recipe:
    """Write it to `r.yaml` in the current folder and load that."""
    path = Path("r.yaml")
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_recipe(path, overrides).recipe
