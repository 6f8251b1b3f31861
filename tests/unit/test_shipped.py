"""Shipped recipes go by their names, from any folder."""

from pathlib import Path

import pytest

from spa_recipes.cli.options import complete_recipe
from spa_recipes.errors import RecipeError
from spa_recipes.plan import compile_plan
from spa_recipes.recipe.load import load_recipe
from spa_recipes.recipe.shipped import find_recipe, shipped_file, shipped_folder, shipped_names
from spa_recipes.state.digests import DigestMemo

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_names_are_those_of_the_folder_and_the_one_that_needs_nothing_comes_first() -> None:
    assert shipped_folder() == RECIPES
    assert sorted(shipped_names()) == sorted(path.stem for path in RECIPES.glob("*.yaml"))
    assert shipped_names()[0] == "quickstart"


@pytest.mark.parametrize("given", ["quickstart", "quickstart.yaml"])
def test_a_name_is_the_recipe(given: str) -> None:
    assert load_recipe(Path(given)).recipe == load_recipe(RECIPES / "quickstart.yaml").recipe


@pytest.mark.parametrize(
    "given", ["recipes/quickstart", "./quickstart/", "../quickstart.yaml", "quickstart.yml", ".", ""]
)
def test_a_path_is_no_name(given: str) -> None:
    expected = RECIPES / "quickstart.yaml" if given == "./quickstart/" else None  # pathlib: the same as the name
    assert shipped_file(Path(given)) == expected


def test_a_file_of_the_users_comes_first_and_a_folder_does_not() -> None:
    Path("dpo_3p3").mkdir()
    assert find_recipe(Path("dpo_3p3")) == RECIPES / "dpo_3p3.yaml"
    Path("quickstart.yaml").write_text("name: mine\n")
    assert find_recipe(Path("quickstart.yaml")) == Path("quickstart.yaml")
    assert find_recipe(Path("quickstart")) == RECIPES / "quickstart.yaml"


def test_a_recipe_extends_a_shipped_one_by_name_and_its_neighbour_before_that(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    mine = tmp_path / "there" / "mine.yaml"
    for named in ("quickstart", "quickstart.yaml"):
        mine.write_text(f"extends: {named}\nname: mine\nseed: 7\n")
        recipe = load_recipe(mine).recipe
        assert (recipe.name, recipe.seed, recipe.data.seed_labels) == ("mine", 7, 300)
    (tmp_path / "quickstart.yaml").write_text("not: this one")  # of the current folder, which `extends` never means
    assert load_recipe(mine).recipe.data.seed_labels == 300
    (tmp_path / "there" / "quickstart.yaml").write_text("extends: dpo_10\nname: neighbour\n")
    assert load_recipe(mine).recipe.data.seed_labels == 6000


def test_a_name_that_is_none_says_what_a_file_would() -> None:
    for given in ("quickstrat", "recipes/quickstart.yaml"):
        with pytest.raises(RecipeError, match=rf"^{given}: no such file; did you mean quickstart, which is shipped\?"):
            load_recipe(Path(given))
    with pytest.raises(RecipeError, match=r"^my\.yaml: no such file; check the path, or write a starter"):
        load_recipe(Path("my.yaml"))


def test_a_shipped_template_is_found_from_any_folder(tmp_path: Path) -> None:
    """The plan names it by its whole path, for the stages' own processes."""
    recipe = load_recipe(Path("sft_ultrachat")).recipe
    plan = compile_plan(recipe, DigestMemo(tmp_path / "memo"))
    assert {stage.settings["model"].chat_template for stage in plan.stages if "model" in stage.settings} == {
        str(RECIPES / "zephyr.jinja")
    }


def test_the_shell_completes_names() -> None:
    sizes = ["ultrafeedback_3p3", *(f"ultrafeedback_3p3_{size}" for size in ("1gpu", "24gb", "8gpu", "slurm"))]
    assert complete_recipe("ultrafeedback_3") == sizes
    assert complete_recipe("") == shipped_names()


def test_every_recipe_says_its_hardware() -> None:
    assert all(load_recipe(Path(name)).recipe.hardware for name in shipped_names())
