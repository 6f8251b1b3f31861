"""Sweep files: what they may say, the recipe of each variant and seed, and a line for each mistake."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from spa_recipes.errors import RecipeError
from spa_recipes.recipe.sweep import Sweep, load_sweep, recipe_of, sweep_schema
from tests.kit.recipes import merged, mini, write_recipe

SWEEP: dict[str, Any] = {
    "name": "s",
    "recipe": "mini.yaml",
    "set": {"compute.cpu_threads": 2},
    "seeds": [1, 2, 3],
    "variants": [{"name": "a"}, {"name": "b", "set": {"sampling.n": 4}}, {"name": "c", "policy": 0}],
    "control": "a",
}


def write(folder: Path, **changes: Any) -> Path:
    """A sweep of the miniature recipe; a key that is None is left out. A line per key, the variants' too."""
    write_recipe(folder / "mini.yaml", mini())
    values = {key: value for key, value in merged(SWEEP, changes).items() if value is not None}
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def problem(path: Path) -> str:
    def read() -> None:
        loaded = load_sweep(path)
        for variant in loaded.sweep.variants:
            recipe_of(loaded, variant, 1)

    with pytest.raises(RecipeError) as raised:
        read()
    return str(raised.value)


def test_a_variant_is_the_recipe_with_its_settings_and_seeds(tmp_path: Path) -> None:
    loaded = load_sweep(write(tmp_path))
    recipe = recipe_of(loaded, loaded.sweep.variants[1], 2).recipe
    assert recipe.name == "s-b-2"
    assert (recipe.sampling.n, recipe.compute.cpu_threads) == (4, 2)
    assert (recipe.seed, recipe.data.shuffle_seed) == (2, 2)
    assert recipe.data.pairs.type == "sandbox"
    assert recipe.sft is not None
    assert recipe.sft.data.type == "sandbox"
    assert (recipe.data.pairs.seed, recipe.sft.data.seed) == (2, 2)


def test_a_variant_wins_over_the_sweep_and_may_have_a_recipe_of_its_own(tmp_path: Path) -> None:
    write_recipe(tmp_path / "other.yaml", mini(seed_training={"beta": 0.5}))
    variants = [{"name": "a"}, {"name": "d", "recipe": "other.yaml", "set": {"compute.cpu_threads": 3}}]
    loaded = load_sweep(write(tmp_path, variants=variants))
    recipe = recipe_of(loaded, loaded.sweep.variants[1], 1).recipe
    assert (recipe.seed_training.beta, recipe.compute.cpu_threads) == (0.5, 3)


def test_seed_keys_leave_what_they_do_not_name(tmp_path: Path) -> None:
    loaded = load_sweep(write(tmp_path, seed_keys=["data.shuffle_seed"]))
    recipe = recipe_of(loaded, loaded.sweep.variants[0], 3).recipe
    assert (recipe.seed, recipe.data.shuffle_seed) == (7, 3)


def test_what_is_tested_and_shown() -> None:
    sweep = Sweep.model_validate(SWEEP)
    assert sweep.tested == ["b", "c"]
    assert sweep.pairs == [("b", "a"), ("c", "a"), ("b", "a"), ("c", "a")]
    assert Sweep.model_validate({**SWEEP, "halving": [{"seeds": 1, "keep": 1}]}).tested == []
    named = Sweep.model_validate({**SWEEP, "hypotheses": ["c"], "differences": [{"of": "b", "minus": "c"}]})
    assert (named.tested, named.pairs) == (["c"], [("c", "a"), ("b", "c")])


MISTAKES: dict[str, tuple[dict[str, Any], str, str]] = {
    "a value of a recipe": (
        {"variants": [{"name": "a", "set": {"sampling.n": "many"}}]},
        "sampling.n:",
        "sampling.n: must be an integer of at least 1, not 'many'",
    ),
    "a key that no recipe has": (
        {"variants": [{"name": "a", "set": {"sampling.m": 4}}]},
        "sampling.m:",
        "sampling.m: unknown key",
    ),
    "settings that contradict each other": (
        {"variants": [{"name": "a", "set": {"noise.lambdas": [0.5]}}]},
        "noise.lambdas:",
        "noise.lambdas: has 1 entry for 2 iterations",
    ),
    "a control that is no variant": ({"control": "z"}, "control:", "control: there is no variant z; variants: a, b, c"),
    "a hypothesis that is no variant": (
        {"hypotheses": ["b", "z"]},
        "- z",
        "hypotheses.1: there is no variant z; variants: a, b, c",
    ),
    "a hypothesis about the control": ({"hypotheses": ["a"]}, "- a", "hypotheses.0: a is the control itself"),
    "a difference of something else": (
        {"differences": [{"of": "b", "minus": "z"}]},
        "minus: z",
        "differences.0.minus: there is no variant z",
    ),
    "two variants of one name": (
        {"variants": [{"name": "a"}, {"name": "a", "policy": 0}]},
        "- name: a\n  policy",
        "variants.1.name: a is the name of another variant",
    ),
    "a seed twice": ({"seeds": [1, 2, 1]}, "seeds:", "seeds: has 1 twice"),
    "a seed of the variant's own": (
        {"variants": [{"name": "a", "set": {"data.shuffle_seed": 4}}]},
        "data.shuffle_seed:",
        "variants.0.set.data.shuffle_seed: is set by the sweep itself",
    ),
    "no recipe": ({"recipe": None, "variants": [{"name": "a"}]}, "- name: a", "variants.0: has no recipe"),
    "a recipe that is not there": ({"recipe": "minni.yaml"}, "recipe:", "no such file; did you mean "),
    "a round with all seeds": (
        {"halving": [{"seeds": 3, "keep": 1}]},
        "- seeds: 3",
        "halving.0.seeds: 3 is not between the 0 seeds before it and the 3 of the sweep",
    ),
    "a round that drops nothing": (
        {"halving": [{"seeds": 1, "keep": 2}]},
        "keep: 2",
        "halving.0.keep: 2 are all that are left: 2 besides the control",
    ),
    "a test on the seeds that chose": (
        {"halving": [{"seeds": 1, "keep": 1}], "hypotheses": ["b"]},
        "hypotheses:",
        "hypotheses: are not tested on the seeds by which halving chose the variants",
    ),
    "a variant that is no section": ({"variants": ["a"]}, "- a", "variants.0: must be a section"),
    "variants that are no list": ({"variants": 3}, "variants:", "variants: must be a list of sections, not 3"),
    "a policy of another name": (
        {"variants": [{"name": "a", "policy": "best"}]},
        "policy:",
        "variants.0.policy: must be an integer of at least 0 or one of last, init, extrapolated, not 'best'",
    ),
    "a key that no sweep has": ({"metric": "reward"}, "metric:", "metric: unknown key; did you mean metrics?"),
}


@pytest.mark.parametrize(("changes", "at", "words"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_named_with_its_line_and_key(tmp_path: Path, changes: dict[str, Any], at: str, words: str) -> None:
    path = write(tmp_path, **changes)
    found = problem(path)
    line = path.read_text().partition(at)[0].count("\n") + 1
    assert found.startswith(f"{path}:{line}: "), found
    assert words in found


def test_a_sweep_reads_nothing_that_is_no_recipe_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "secrets.env").write_text("TOKEN: [")
    path = write(tmp_path, recipe="secrets.env")
    assert problem(path) == (
        f"{path}:2: recipe: {tmp_path / 'secrets.env'}: not a file named .yaml or .yml; name a recipe, in its own file"
    )


def test_an_empty_file_and_one_that_is_not_there_are_no_sweeps(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such file"):
        load_sweep(tmp_path / "sweep.yaml")
    (tmp_path / "sweep.yaml").write_text("")
    with pytest.raises(RecipeError, match="the sweep is empty"):
        load_sweep(tmp_path / "sweep.yaml")


def test_its_schema_describes_every_key() -> None:
    schema = sweep_schema()
    sections = (schema, *schema["$defs"].values())
    assert all("description" in entry for section in sections for entry in section["properties"].values())
