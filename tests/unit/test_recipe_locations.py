"""Which fields name files, folders and Hub ids."""

from collections.abc import Iterator
from typing import Any, get_args

import pytest

from spa_recipes.recipe.jobs import AnyRecipe
from spa_recipes.recipe.locations import is_location, locations, sections_of
from spa_recipes.recipe.schema import Section

NO_LOCATIONS = {
    "AlpacaEval.annotator",
    "BenchmarkJob.name",
    "BenchmarkJob.out",
    "BenchmarkedModel.attn_implementation",
    "BenchmarkedModel.chat_template_kwargs",
    "BenchmarkedModel.revision",
    "Columns.chosen",
    "Columns.id",
    "Columns.ignore",
    "Columns.label",
    "Columns.margin",
    "Columns.positive",
    "Columns.prompt",
    "Columns.rejected",
    "Columns.scores",
    "Columns.system",
    "Columns.weight",
    "AddedLabels.config_name",
    "AddedLabels.revision",
    "AddedLabels.split",
    "DatasetSource.config_name",
    "DatasetSource.revision",
    "DatasetSource.split",
    "Endpoint.api_key_env",
    "Endpoint.base_url",
    "Endpoint.model",
    "JudgeJob.name",
    "JudgeJob.reference_revision",
    "LlmJudge.chat_template_kwargs",
    "LlmJudge.revision",
    "LmEval.tasks",
    "Lora.lora_target_modules",
    "Model.attn_implementation",
    "Model.chat_template_kwargs",
    "Model.revision",
    "RayExecutor.address",
    "RayExecutor.resources",
    "Recipe.description",
    "Recipe.hardware",
    "Recipe.name",
    "RewardModelComparison.revision",
    "RewardModelJudge.revision",
    "SampleJob.name",
    "SlurmExecutor.account",
    "SlurmExecutor.partition",
    "SlurmExecutor.qos",
    "SlurmExecutor.sbatch",
    "SlurmExecutor.setup",
    "SlurmExecutor.time",
}
"""Fields with a text of the user's own that names no place."""


def every_section() -> set[type[Section]]:
    found: set[type[Section]] = set()
    left = list(sections_of(AnyRecipe))
    while left:
        section = left.pop()
        if section not in found:
            found.add(section)
            left += [each for field in section.model_fields.values() for each in sections_of(field.annotation)]
    return found


def allows_text(annotation: Any) -> bool:
    """Say whether a field of this type holds a text, or a list of texts, that the schema does not enumerate."""
    return annotation is str or any(map(allows_text, get_args(annotation)))


def fields() -> Iterator[tuple[str, bool, bool]]:
    """Yield every field with whether it allows a text and whether it is marked."""
    for section in every_section():
        for name, field in section.model_fields.items():
            yield f"{section.__name__}.{name}", allows_text(field.annotation), is_location(section, name)


def test_every_field_with_a_text_is_marked_or_known_to_name_no_place() -> None:
    texts = {name for name, text, _ in fields() if text}
    marked = {name for name, _, marked in fields() if marked}
    assert marked <= texts
    assert texts - marked == NO_LOCATIONS


def test_descriptions_of_a_file_a_folder_or_a_hub_id_are_of_marked_fields() -> None:
    for section in every_section():
        for name, field in section.model_fields.items():
            described = (field.description or "").startswith(("File", "Folder", "Hub id", "FastChat's", "JSONL"))
            assert is_location(section, name) or not described, f"{section.__name__}.{name}"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {
                "name": "org/name",
                "description": "runs/a/stages/03-seed-0123abcd",
                "model": {"model_name_or_path": "m", "chat_template": "t", "revision": "runs/b"},
                "data": {"pairs": {"source": "p", "columns": {"prompt": "runs/c"}}, "prompts": {"type": "sandbox"}},
                "sft": {"data": {"source": "s"}},
                "judge": {"type": "llm", "model_name_or_path": "j", "prompt": "q", "endpoint": {"model": "org/model"}},
                "evaluation": {
                    "reward_policy": "rp",
                    "benchmarks": [
                        {"type": "pairwise", "against": "a", "judge": {"policy": "jp", "reference": "jr"}},
                        {"type": "mt_bench", "questions": "mq"},
                    ],
                },
                "compute": {"executor": {"type": "accelerate", "config_file": "ac"}},
                "storage": {"runs_dir": "r"},
            },
            ["m", "t", "p", "s", "j", "q", "rp", "a", "jp", "jr", "mq", "ac", "r"],
        ),
        ({"model": {"model_name_or_path": "m"}, "reference": "ref", "pairs": {"source": "p"}}, ["m", "ref", "p"]),
        ({"model": {"model_name_or_path": "m"}, "benchmark": {"prompts": "b"}}, ["m", "b"]),
        ({"model": {"model_name_or_path": 3}, "of_another_version": {"source": "s"}, "sft": None, "data": []}, []),
        ([], []),
    ],
    ids=["recipe", "judge job", "evaluate job", "of another version", "no settings"],
)
def test_the_locations_of_settings_are_the_values_of_marked_fields(settings: Any, expected: list[str]) -> None:
    assert set(locations(settings)) == set(expected)
