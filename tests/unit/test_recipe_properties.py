"""Whatever a file holds, reading it gives a recipe or a `RecipeError`; a recipe survives being written and read."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from spa_recipes.errors import RecipeError
from spa_recipes.recipe import text as recipe_text
from spa_recipes.recipe.load import load_recipe, resolved
from spa_recipes.recipe.schema import Recipe

FAST = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
BASE: dict[str, Any] = {
    "name": "x",
    "model": {"model_name_or_path": "m"},
    "data": {"pairs": {"type": "dataset", "source": "a.jsonl"}},
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "r.yaml"


def read_or_refuse(path: Path, content: bytes, *overrides: str) -> Recipe | None:
    path.write_bytes(content)
    try:
        return load_recipe(path, overrides).recipe
    except RecipeError as error:
        for problem in (error, *getattr(error, "others", ())):
            line = str(problem)
            assert line
            assert "\n" not in line
            line.encode()  # can be printed
        return None


# ---------------------------------------------------------------------------------------------- nothing else is raised

SYNTAX = st.text(alphabet="abn01.-:,[]{}&*!|>'\"%#?@`~<=e_ \n\t\\U\u2028é\0", max_size=60)


@FAST
@given(st.one_of(st.text(max_size=80), SYNTAX))
@example("%YAML 1.1")
@example("- !<")
@example("a: |\n  b\n c")
@example('"\\U00110000"')
@example("? ? ?")
def test_any_text(path: Path, text: str) -> None:
    read_or_refuse(path, text.encode("utf-8", "surrogatepass"))


PIECES = st.lists(
    st.sampled_from(
        [*"ab[]{}>|!&*%@?:-~'", "a: ", "c:", "- ", "\n", "  ", ", ", '"x"', "'y'", "1", "5e-7", "null", "# c"]
    )
    | st.sampled_from(["---", "...", "key: v\n", "  k: 1\n", "- 1\n", ">+\n  t\n", "<<: ", '"\\u0041"', '"a\n b"']),
    max_size=14,
).map("".join)


@FAST
@given(PIECES)
@example("a: {b?c: 1}")
@example("|#c")
@example("---")
def test_libyaml_reads_what_pyyaml_reads(text: str) -> None:
    def place(line: int) -> recipe_text.Place:
        return recipe_text.Place(f"line {line}", line)

    fast = recipe_text._parse_fast(text, place)
    if fast is not None:
        slow = recipe_text._Loader(text, place).read()
        assert (repr(fast.root), fast.places, fast.written) == (repr(slow.root), slow.places, slow.written)


def test_shipped_recipes_are_read_by_libyaml() -> None:
    assert yaml.__with_libyaml__
    for path in sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml")):
        assert recipe_text._parse_fast(path.read_text(), lambda line: recipe_text.Place("", line)) is not None, path


@FAST
@given(st.binary(max_size=60))
def test_any_bytes(path: Path, content: bytes) -> None:
    read_or_refuse(path, content)


@FAST
@given(SYNTAX)
def test_any_text_in_a_recipe(path: Path, text: str) -> None:
    read_or_refuse(path, f"{yaml.safe_dump(BASE)}{text}".encode())


@FAST
@given(st.one_of(st.text(max_size=30), SYNTAX), st.one_of(st.text(max_size=30), SYNTAX))
def test_any_override(path: Path, key: str, value: str) -> None:
    read_or_refuse(path, yaml.safe_dump(BASE).encode(), f"{key}={value}")
    read_or_refuse(path, yaml.safe_dump(BASE).encode(), f"noise.lambdas.{key}={value}", f"noise={value}")


def _keys() -> list[str]:
    schema = Recipe.model_json_schema()
    return sorted({key for part in (schema, *schema["$defs"].values()) for key in part["properties"]})


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.sampled_from(["gold", "random", "implicit_reward", "dataset", "sandbox", "fixed", "percentile", "vllm", "no"]),
    st.text(max_size=8),
)
TREES = st.recursive(
    LEAVES,
    lambda children: st.one_of(
        st.lists(children, max_size=3),
        st.dictionaries(st.one_of(st.sampled_from(_keys()), st.text(max_size=4)), children, max_size=5),
    ),
    max_leaves=12,
)


@FAST
@given(TREES)
def test_any_structure(path: Path, tree: Any) -> None:
    with contextlib.suppress(yaml.YAMLError):
        read_or_refuse(path, yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "replace"))


@FAST
@given(st.dictionaries(st.sampled_from(sorted(Recipe.model_fields)), TREES, min_size=1, max_size=6))
def test_any_sections(path: Path, sections: dict[str, Any]) -> None:
    """Close to a recipe, so that errors come from deep inside of the schema."""
    read_or_refuse(path, yaml.safe_dump({**BASE, **sections}).encode("utf-8", "replace"))


# ---------------------------------------------------------------------------------------------- writing and reading

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
SMALL = st.integers(1, 2**40)
SEEDS = st.integers(0, 2**32 - 1)
ROWS = st.integers(1, 13_056)
RATES = st.floats(1e-12, 1e3)
BATCHES = st.tuples(st.integers(1, 64), st.integers(1, 64))


@st.composite
def trainings(draw: st.DrawFn, /, **more: st.SearchStrategy[Any]) -> dict[str, Any]:
    per_device, steps = draw(BATCHES)
    fixed = {"global_batch_size": per_device * steps, "per_device_train_batch_size": per_device}
    free = {
        "learning_rate": RATES,
        "lr_scheduler_type": st.sampled_from(["cosine", "linear", "constant"]),
        "warmup_ratio": st.floats(0, 1),
        "num_train_epochs": st.integers(1, 9),
        "gradient_checkpointing": st.booleans(),
    }
    return {**fixed, **draw(st.fixed_dictionaries({}, optional={**free, **more}))}


SOURCES = st.one_of(
    st.fixed_dictionaries(
        {"source": TEXT.filter(bool)},
        optional={
            "type": st.just("dataset"),
            "revision": st.none() | TEXT,
            "split": TEXT,
            "columns": st.fixed_dictionaries({}, optional={"prompt": TEXT, "chosen": st.none()}),
            "on_bad_row": st.sampled_from(["error", "skip"]),
        },
    ),
    st.fixed_dictionaries({"type": st.just("sandbox")}, optional={"rows": ROWS, "seed": SEEDS}),
)
JUDGES = st.one_of(
    st.just({"type": "random"}),
    st.fixed_dictionaries(
        {}, optional={"type": st.just("implicit_reward"), "beta": RATES, "reference": st.just("init")}
    ),
)
THRESHOLDS = st.one_of(
    st.fixed_dictionaries({}, optional={"type": st.just("percentile"), "k": st.floats(1, 99), "window": st.just(99)}),
    st.fixed_dictionaries({"type": st.just("fixed"), "tau": st.floats(0.01, 0.99)}),
)


@st.composite
def recipes(draw: st.DrawFn) -> dict[str, Any]:
    iterations = draw(st.integers(1, 4))
    tree = {
        "name": draw(NAMES),
        "model": {"model_name_or_path": draw(TEXT.filter(lambda text: text not in ("", "sandbox")))},
        "data": {
            "pairs": draw(SOURCES),
            "seed_labels": draw(st.one_of(SMALL, st.floats(0.001, 1.0))),
            "prompts_per_iteration": draw(st.lists(SMALL, min_size=iterations, max_size=iterations)),
        },
    }
    optional = {
        "description": TEXT,
        "seed": SEEDS,
        "sft": st.none() | trainings().flatmap(lambda t: SOURCES.map(lambda source: {**t, "data": source})),
        "seed_training": trainings(beta=RATES),
        "refine": trainings(beta=RATES),
        "judge": JUDGES,
        "noise": st.fixed_dictionaries(
            {"threshold": THRESHOLDS},
            optional={
                "lambdas": st.none() | st.lists(st.floats(0, 2), min_size=iterations, max_size=iterations),
                "enabled": st.booleans(),
                "alpha": st.floats(0, 0.5),
            },
        ),
        "tracking": st.fixed_dictionaries({"report_to": st.lists(st.sampled_from(["wandb", "mlflow"]), max_size=2)}),
        "storage": st.fixed_dictionaries({"runs_dir": TEXT.filter(bool)}),
    }
    return {**tree, **draw(st.fixed_dictionaries({}, optional=optional))}


class Quoting(yaml.SafeDumper):
    """PyYAML decides after YAML 1.1 which texts need quotes (5e-7 does not); here every text has some."""


Quoting.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))
Quoting.ignore_aliases = lambda self, data: True  # type: ignore[method-assign]


@settings(FAST, max_examples=40)
@given(recipes())
def test_a_recipe_survives_yaml_and_json(path: Path, tree: dict[str, Any]) -> None:
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError:
        pytest.fail(f"the strategy made a recipe that is none: {tree}")
    full = resolved(recipe)
    assert read_or_refuse(path, yaml.dump(full, Dumper=Quoting, sort_keys=False).encode()) == recipe
    assert read_or_refuse(path, yaml.dump(full, Dumper=Quoting, default_flow_style=True).encode()) == recipe
    assert read_or_refuse(path, json.dumps(full).encode()) == recipe
    assert read_or_refuse(path, yaml.dump(tree, Dumper=Quoting).encode()) == recipe


@FAST
@given(st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**63), 2**63 - 1)))
def test_numbers_in_every_usual_spelling(path: Path, number: float) -> None:
    for written in (repr(number), json.dumps(number), yaml.safe_dump(number).split("\n")[0], f"{number:.17e}"):
        path.write_text(f"{yaml.safe_dump(BASE)}noise: {{threshold: {{type: fixed, tau: {written}}}}}\n")
        try:
            threshold = load_recipe(path).recipe.noise.threshold
            assert threshold.type == "fixed"
            assert threshold.tau == number
        except RecipeError as error:
            assert f"must be a number above 0 and below 1, not {written}" in str(error)  # noqa: PT017
            assert not 0 < number < 1
