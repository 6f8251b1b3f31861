"""Recipes that want to show what is in other files, or to wait for ever."""

import os
from pathlib import Path

import pytest

from spa_recipes.errors import RecipeError
from spa_recipes.recipe.load import load_recipe


def line(recipe: Path) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe)
    return str(caught.value)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "r.yaml").write_text("extends: other.yaml\nname: x\n")
    return tmp_path / "r.yaml"


@pytest.mark.parametrize(
    "secret", ["hunter2\n", "root:x:0:0:root\n", "password: hunter2\n", "- hunter2\n", "'hunter2\n"]
)
@pytest.mark.parametrize("name", ["secret", ".netrc", "secret.txt", "secret.conf"])
def test_extends_shows_nothing_of_a_file_that_is_no_recipe(recipe: Path, secret: str, name: str) -> None:
    (recipe.parent / name).write_text(secret)
    recipe.write_text(f"extends: {name}\nname: x\n")
    assert line(recipe).startswith(f"{recipe}:1: extends: {recipe.parent / name}: not a file named .yaml or .yml; ")
    assert "hunter2" not in line(recipe)
    assert "root:x" not in line(recipe)


def test_a_link_named_as_a_recipe_shows_nothing_of_what_it_leads_to(recipe: Path) -> None:
    (recipe.parent / "secret").write_text("hunter2\n")
    (recipe.parent / "other.yaml").symlink_to("secret")
    assert "other.yaml: not a file named .yaml or .yml" in line(recipe)


def test_a_pipe_or_a_device_that_a_recipe_extends(recipe: Path) -> None:
    os.mkfifo(recipe.parent / "other.yaml")
    assert "not a file named .yaml or .yml" in line(recipe)
    recipe.write_text("extends: /dev/zero\nname: x\n")
    assert "not a file named .yaml or .yml" in line(recipe)
