"""What is derived from the schema: the resolved recipe, the JSON schema for editors, the starter recipe."""

import json

import pytest

from spa_recipes.recipe.load import (
    recipe_schema,
    resolved,
)
from spa_recipes.recipe.problems import EXAMPLES
from spa_recipes.recipe.schema import Recipe
from spa_recipes.recipe.starter import starter_recipe
from tests.kit.recipe_texts import BASE, read

pytestmark = pytest.mark.usefixtures("in_tmp")


def test_resolved_has_every_default_and_is_json() -> None:
    recipe = read(BASE)
    tree = resolved(recipe)
    assert json.loads(json.dumps(tree)) == tree
    assert tree["noise"]["threshold"] == {"type": "percentile", "k": 10.0, "window": 512, "min_pairs": 32}
    assert set(tree) == set(Recipe.model_fields)
    assert Recipe.model_validate(tree) == recipe


def test_schema_is_for_editors() -> None:
    schema = recipe_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["title"] == "spa-recipes recipe"
    assert schema["additionalProperties"] is False
    sections = [schema, *schema["$defs"].values()]
    undescribed = [
        name
        for section in sections
        for name, entry in section["properties"].items()
        if name != "type" and "description" not in entry and "$ref" not in entry
    ]
    assert not undescribed
    json.dumps(schema)


def test_schema_lets_the_type_out_where_there_is_a_default() -> None:
    sections = recipe_schema()["$defs"]
    kinds = {name: section for name, section in sections.items() if "type" in section["properties"]}
    for section in kinds.values():
        type_entry = section["properties"]["type"]
        assert ("default" in type_entry) != ("type" in section.get("required", ()))
        assert type_entry.get("default", type_entry["const"]) == type_entry["const"]
    defaults = {name for name, section in kinds.items() if "type" not in section.get("required", ())}
    assert defaults == {
        "DatasetSource", "ImplicitRewardJudge", "PercentileThreshold", "TransformersBackend", "LocalExecutor",
        "ImplicitRewardComparison", "AddedLabels",
    }  # fmt: skip
    judges = {entry["$ref"].rpartition("/")[2] for entry in recipe_schema()["properties"]["judge"]["oneOf"]}
    assert judges == {"ImplicitRewardJudge", "RewardModelJudge", "LlmJudge", "GoldJudge", "RandomJudge"}
    assert sections["DatasetSource"]["required"] == ["source"]


def test_schema_is_a_fresh_copy() -> None:
    recipe_schema()["properties"].clear()
    assert recipe_schema()["properties"]


def test_every_required_key_has_an_example() -> None:
    names = {key.rpartition(".")[2] for key in EXAMPLES}
    for section in (recipe_schema(), *recipe_schema()["$defs"].values()):
        assert set(section.get("required", ())) <= names


def test_starter_loads() -> None:
    text = starter_recipe()
    recipe = read(text)
    assert recipe.data.pairs.type == "dataset"
    assert max(len(line) for line in text.splitlines()) <= 120


def test_starter_says_the_defaults() -> None:
    """Values of the starter are the schema's defaults, but for those that its comments mark."""
    recipe = read(starter_recipe())
    plain = read(BASE, "name=my-run")
    marked = {
        "model": recipe.model,
        "data": recipe.data,
        "seed_training": recipe.seed_training.model_copy(update={"num_train_epochs": 1, "learning_rate": 5e-7}),
        "refine": recipe.refine.model_copy(update={"learning_rate": 5e-7}),
        "noise": plain.noise.model_copy(update={"lambdas": [plain.lambda_of(1), plain.lambda_of(2)]}),
    }
    read_as = recipe.model_copy(update={name: marked[name] for name in ("seed_training", "refine")})
    assert read_as == plain.model_copy(update=marked)
    assert recipe.model.model_copy(update={"model_name_or_path": "m"}) == plain.model
