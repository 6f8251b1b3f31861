"""The recipe that `spa init --model M --pairs P` writes: it loads, it fits what was seen, and it says why."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spa_recipes.cli.init import write_fitted
from spa_recipes.errors import DataError, RecipeError
from spa_recipes.recipe.fitted import LEAST_PAIRS, Machine, Seen, Unlabelled, fitted_recipe, parts_of, rate_of
from spa_recipes.recipe.load import load_recipe
from spa_recipes.recipe.schema import DatasetSource, Recipe
from tests.kit.models import judge_inputs
from tests.kit.recipe_texts import read

pytestmark = pytest.mark.usefixtures("in_tmp")

GB = 10**9
CPU = Machine(0, 64 * GB)


def seen(
    rows: int = 50,
    parameters: int | None = 135_000_000,
    context: int | None = 8192,
    prompts: list[int] | None = None,
    answers: list[int] | None = None,
    machine: Machine = CPU,
    template: str = "{{ messages }}",
    unlabelled: int | None = None,
) -> Seen:
    lengths = (sorted(prompts or [40, 60, 300]), sorted(answers or [50, 150, 600]))
    more = None if unlabelled is None else Unlabelled("more.jsonl", unlabelled)
    return Seen(
        "my", "a/model", parameters, context, template, "my pairs.jsonl", "pairs", rows, *lengths, machine, more
    )


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(LEAST_PAIRS, 100_000),
    parameters=st.none() | st.integers(10**6, 10**11),
    context=st.none() | st.sampled_from([256, 2048, 131072]),
    prompts=st.lists(st.integers(1, 5000), min_size=1, max_size=5),
    answers=st.lists(st.integers(1, 5000), min_size=1, max_size=5),
    machine=st.builds(Machine, st.sampled_from([0, 1, 3, 8]), st.none() | st.integers(GB, 200 * GB), st.booleans()),
    unlabelled=st.none() | st.integers(1, 100_000),
)
def test_what_is_written_is_a_recipe_that_fits(
    rows: int,
    parameters: int | None,
    context: int | None,
    prompts: list[int],
    answers: list[int],
    machine: Machine,
    unlabelled: int | None,
) -> None:
    text = fitted_recipe(seen(rows, parameters, context, prompts, answers, machine, unlabelled=unlabelled))
    recipe = read(text)
    data = recipe.data
    assert isinstance(data.seed_labels, int)
    fresh = sum(data.prompts_per_iteration)
    if unlabelled is None:
        assert data.seed_labels + fresh + data.heldout <= rows
    else:
        assert data.seed_labels + data.heldout <= rows
        assert fresh <= unlabelled
    assert (data.prompts is None) == (unlabelled is None)
    assert recipe.model.max_length <= (context or 10**9)
    assert recipe.noise.lambdas is None or len(recipe.noise.lambdas) == recipe.iterations
    steps = data.seed_labels // recipe.seed_training.global_batch_size
    assert steps >= min(data.seed_labels // 4, 4)


def test_a_small_model_gets_a_larger_rate() -> None:
    rates = [rate_of(size, lora=False) for size in (135_000_000, 1_000_000_000, 7_240_000_000)]
    assert rates == [1e-5, 2e-6, 5e-7]
    assert rate_of(None, lora=False) == 5e-7
    assert rate_of(7_240_000_000, lora=True) == 5e-6


def test_every_value_has_its_reason() -> None:
    lines = [line for line in fitted_recipe(seen()).splitlines() if line.startswith("  ")]
    bare = [line.split(":")[0].strip() for line in lines if "#" not in line]
    assert bare == ["model_name_or_path", "pairs"]
    assert fitted_recipe(seen()).startswith("# yaml-language-server: $schema=")


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"machine": Machine(1, 24 * GB), "parameters": 7 * GB}, ["lora: {load_in_4bit: true}", "140 GB of 24 GB"]),
        ({"machine": Machine(1, 80 * GB), "parameters": 7 * GB}, ["lora: {} "]),
        ({"machine": Machine(4, 80 * GB, has_vllm=True)}, ["num_processes: 4", "type: vllm, data_parallel_size: 4"]),
        ({"machine": CPU}, ["dtype: float32", "executor: {type: fork}"]),
        ({"template": ""}, ["chat_template: zephyr.jinja"]),
        ({"template": "{% if enable_thinking %}"}, ["chat_template_kwargs: {enable_thinking: false}"]),
        ({"context": 512}, ["max_length: 512", "all that the model has positions for"]),
        ({"context": 512}, ["max_tokens: 256", "what the model's positions leave beside a prompt"]),
        ({"answers": [50, 150]}, ["max_tokens: 512", "95 % of your answers have at most 150, but a model writes more"]),
        ({"answers": [50, 150]}, ["max_length: 832", "an answer that the model writes (sampling.max_tokens)"]),
        ({"answers": [50, 600]}, ["max_tokens: 608", "as long as 95 % of your answers"]),
    ],
)
def test_what_was_seen_decides(facts: dict[str, object], words: list[str]) -> None:
    text = fitted_recipe(seen(**facts))  # type: ignore[arg-type]
    for word in words:
        assert word in text


def test_too_few_pairs_are_refused() -> None:
    with pytest.raises(DataError, match=f"{LEAST_PAIRS - 1} usable pairs are too few"):
        parts_of(LEAST_PAIRS - 1)


def test_a_model_and_a_file_become_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judge_inputs(tmp_path, 20)
    model, pairs = str(tmp_path / "policy"), str(tmp_path / "pairs.jsonl")
    target = tmp_path / "my recipe.yaml"
    write_fitted(target, model, pairs)
    recipe = load_recipe(target).recipe
    assert isinstance(recipe, Recipe)
    assert (recipe.name, recipe.data.heldout, recipe.data.seed_labels) == ("my-recipe", 4, 8)
    assert "20 pairs, read as" in capsys.readouterr().out
    with pytest.raises(RecipeError, match="the file is there already"):
        write_fitted(target, model, pairs)


def test_prompts_without_labels_are_answered_and_all_labels_are_learned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judge_inputs(tmp_path, 20)
    model, pairs = str(tmp_path / "policy"), tmp_path / "pairs.jsonl"
    known = json.loads(pairs.read_text().splitlines()[0])["prompt"]
    more = tmp_path / "more.jsonl"
    more.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("new", "other", "new", known)))
    write_fitted(tmp_path / "r.yaml", model, str(pairs), str(more))
    recipe = load_recipe(tmp_path / "r.yaml").recipe
    assert isinstance(recipe, Recipe)
    assert (recipe.data.seed_labels, recipe.data.prompts_per_iteration, recipe.data.heldout) == (16, [2], 4)
    assert isinstance(recipe.data.prompts, DatasetSource)
    assert recipe.data.prompts.source == str(more)
    assert "2 prompts that no pair has" in capsys.readouterr().out
    more.write_text(json.dumps({"prompt": known}) + "\n")
    with pytest.raises(DataError, match=r"^.*more\.jsonl.*every prompt is that of a pair, too"):
        write_fitted(tmp_path / "s.yaml", model, str(pairs), str(more))
