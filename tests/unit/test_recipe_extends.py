"""Recipes that build on others: merging, places in messages, and chains that do not end."""

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from spa_recipes.errors import RecipeError
from spa_recipes.recipe.load import load_recipe, recipe_schema
from tests.kit.recipes import mini, write_recipe


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_recipe(tmp_path / "base.yaml", mini(noise={"lambdas": [0.5, 0.25]}))


def child(folder: Path, text: str, name: str = "child.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_sections_merge_and_values_replace(base: Path, tmp_path: Path) -> None:
    path = child(
        tmp_path,
        "extends: base.yaml\nname: child\ndata: {prompts_per_iteration: [40]}\n"
        "noise:\n  lambdas: [0.1]\nevaluation: {reward: none}\n",
    )
    recipe, old = load_recipe(path).recipe, load_recipe(base).recipe
    assert recipe.name == "child"
    assert recipe.data.prompts_per_iteration == [40]
    assert recipe.noise.lambdas == [0.1]
    assert recipe.evaluation.reward == "none"
    assert recipe.model == old.model
    assert recipe.data.heldout == old.data.heldout
    assert recipe.noise.threshold == old.noise.threshold
    assert load_recipe(path).text == path.read_text()


def test_another_type_starts_a_section_anew(tmp_path: Path) -> None:
    write_recipe(tmp_path / "base.yaml", mini(judge={"type": "implicit_reward", "beta": 0.3}))
    anew = child(tmp_path, "extends: base.yaml\nname: a\njudge: {type: random}\n", "a.yaml")
    assert load_recipe(anew).recipe.judge.type == "random"
    same = child(tmp_path, "extends: base.yaml\nname: b\njudge: {recompute_policy_logps: true}\n", "b.yaml")
    judge = load_recipe(same).recipe.judge
    assert judge.type == "implicit_reward"
    assert (judge.beta, judge.recompute_policy_logps) == (0.3, True)


def test_null_takes_a_section_away(base: Path, tmp_path: Path) -> None:
    path = child(tmp_path, "extends: base.yaml\nname: c\nsft: null\nmodel: {model_name_or_path: m}\n")
    assert load_recipe(path).recipe.sft is None


def test_a_chain_in_other_folders(base: Path, tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    child(tmp_path, "extends: base.yaml\nname: middle\nseed: 5\nnoise: {alpha: 0.3}\n", "middle.yaml")
    last = child(tmp_path / "deeper", "extends: ../middle.yaml\nname: last\nnoise: {alpha: 0.4}\n")
    recipe = load_recipe(last).recipe
    assert (recipe.seed, recipe.noise.alpha, recipe.noise.lambdas) == (5, 0.4, [0.5, 0.25])
    assert load_recipe(last, ["noise.alpha=0.05"]).recipe.noise.alpha == 0.05


def problem(path: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return str(caught.value)


def test_mistakes_are_told_where_they_stand(base: Path, tmp_path: Path) -> None:
    wrong = child(tmp_path, "extends: base.yaml\nname: w\nnoise:\n  alfa: 0.2\n")
    assert problem(wrong).startswith(f"{wrong}:4: noise.alfa: unknown key")
    broken = yaml.safe_dump(mini(noise={"alpha": 7}))
    (tmp_path / "base.yaml").write_text(broken)
    line = broken.splitlines().index("  alpha: 7") + 1
    fine = child(tmp_path, "extends: base.yaml\nname: f\n")
    assert problem(fine).startswith(f"{base}:{line}: noise.alpha: must be")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: nowhere.yaml\nname: x\n", "child.yaml:1: extends: {folder}/nowhere.yaml: no such file"),
        ("name: x\nextends: [base.yaml]\n", "child.yaml:2: extends: must be the path of a recipe, not a list"),
        ("name: x\nextends:\n", "child.yaml:2: extends: must be the path of a recipe, not nothing"),
        ("extends: child.yaml\nname: x\n", "child.yaml:1: extends: the chain of recipes does not end"),
        ("extends: .\nname: x\n", "child.yaml:1: extends: {folder}: this is a folder, not a recipe"),
        ("extends: base.yaml\n", "child.yaml:1: a recipe that extends another needs its own name"),
    ],
)
def test_one_line(base: Path, tmp_path: Path, text: str, message: str) -> None:
    path = child(tmp_path, text)
    found = problem(path)
    assert found.startswith(f"{tmp_path}/{message.format(folder=tmp_path)}")
    assert "\n" not in found


def test_two_recipes_that_extend_each_other(tmp_path: Path) -> None:
    a = child(tmp_path, "extends: b.yaml\nname: a\n", "a.yaml")
    child(tmp_path, "extends: a.yaml\nname: b\n", "b.yaml")
    assert "does not end (a.yaml -> b.yaml -> a.yaml)" in problem(a)


def test_a_mistake_inside_the_other_recipe_keeps_its_line(tmp_path: Path) -> None:
    child(tmp_path, "name: base\n\tx: 1\n", "base.yaml")
    assert problem(child(tmp_path, "extends: base.yaml\nname: x\n")).startswith(f"{tmp_path}/base.yaml:2: a tab")


def test_editors_accept_it(tmp_path: Path) -> None:
    schema = recipe_schema()
    jsonschema.validate({"extends": "base.yaml", "name": "x"}, schema)
    jsonschema.validate(mini(), schema)
    for incomplete in ({"name": "x"}, {"extends": "base.yaml"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(incomplete, schema)


def test_the_plan_shows_the_resolved_whole(base: Path, tmp_path: Path, spa_here: Any) -> None:
    child(tmp_path, "extends: base.yaml\nname: child\nnoise: {alpha: 0.3}\n")
    shown = spa_here("plan", "child.yaml", "--resolved")
    assert shown.code == 0, shown.err
    whole = yaml.safe_load(shown.out)
    assert whole["noise"]["alpha"] == 0.3
    assert whole["noise"]["lambdas"] == [0.5, 0.25]
    assert whole["judge"]["reference"] == "init"
    (tmp_path / "again.yaml").write_text(shown.out)
    first, second = (load_recipe(tmp_path / name).recipe for name in ("child.yaml", "again.yaml"))
    assert first == second
