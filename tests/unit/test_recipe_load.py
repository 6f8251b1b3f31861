"""Reading recipe files: YAML scalars, what is no recipe at all, overrides, and the light import."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from spa_recipes.errors import RecipeError
from spa_recipes.recipe.jobs import JudgeJob
from spa_recipes.recipe.load import (
    MAX_BYTES,
    MAX_PROBLEMS,
    InvalidRecipeError,
    load_recipe,
    resolved,
)
from spa_recipes.recipe.rules import SANDBOX_PROMPTS
from spa_recipes.recipe.schema import Recipe
from tests.kit.recipe_texts import BASE, read

pytestmark = pytest.mark.usefixtures("in_tmp")


def value(recipe: Recipe, key: str) -> Any:
    node: Any = recipe
    for name in key.split("."):
        node = getattr(node, name)
    return node


def refusal(text: str | bytes, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        read(text, *overrides)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_gives_recipe_path_and_text_as_it_was() -> None:
    text = "# ü\r\n" + BASE.replace("\n", "\r\n")
    Path("r.yaml").write_bytes(text.encode())
    loaded = load_recipe(Path("r.yaml"))
    assert loaded.recipe.name == "x"
    assert loaded.path == Path("r.yaml")
    assert loaded.text == text


def test_a_byte_order_mark_does_no_harm() -> None:
    assert read(b"\xef\xbb\xbf" + BASE.encode()).name == "x"


@pytest.mark.parametrize(
    ("written", "number"),
    [
        ("5e-7", 5e-7),
        ("1e-4", 1e-4),
        ("2E3", 2000.0),
        ("1.5e+2", 150.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("3", 3.0),
        ("+0.25", 0.25),
        ("1.0e-07", 1e-7),
        ("4e-3 # a comment", 4e-3),
    ],
)
def test_numbers(written: str, number: float) -> None:
    learning_rate = read(f"{BASE}refine:\n  learning_rate: {written}\n").refine.learning_rate
    assert learning_rate == number
    assert isinstance(learning_rate, float)


PLAIN_TEXTS = [
    "no", "yes", "on", "off", "y", "N", "1_000", "0x10", "007", "0o17", ".inf",
    ".nan", "1:30", "2026-01-31", "1,5", "=", "nan", "e5", "1e", "--", "a:b", "C:\\x", "a#b",
]  # fmt: skip


@pytest.mark.parametrize("text", PLAIN_TEXTS)
def test_plain_text(text: str) -> None:
    assert read(f"{BASE}description: {text}\n").description == text


@pytest.mark.parametrize("text", ["true", "null", "~", "1", "5e-7", "", "no", "😀", "a: b", "# x"])
def test_quoted_text(text: str) -> None:
    assert read(f"{BASE}description: '{text}'\n").description == text
    assert read(f"{BASE}description: {json.dumps(text)}\n").description == text


@pytest.mark.parametrize("written", ["null", "~", "", "Null", "NULL", "# nothing"])
def test_null(written: str) -> None:
    assert read(f"{BASE}sft: {written}\n").sft is None


@pytest.mark.parametrize(("written", "truth"), [("true", True), ("True", True), ("false", False), ("FALSE", False)])
def test_truth(written: str, truth: bool) -> None:
    assert read(f"{BASE}noise: {{enabled: {written}}}\n").noise.enabled is truth


@pytest.mark.parametrize("written", ["300", "0.033", "1.0", "1", "0"])
def test_seed_labels_are_a_count_or_a_fraction(written: str) -> None:
    seed_labels = read(f"{BASE}  seed_labels: {written}\njudge: {{type: random}}\n").data.seed_labels
    assert (seed_labels, type(seed_labels)) == (json.loads(written), type(json.loads(written)))


def test_json_is_a_recipe_too() -> None:
    recipe = read(BASE)
    assert read(json.dumps(resolved(recipe))) == recipe
    assert read(json.dumps(resolved(recipe), indent=1)) == recipe


def test_start_and_end_marks_of_one_document() -> None:
    assert read(f"---\n{BASE}...\n").name == "x"


def test_the_type_of_a_section_may_be_left_out() -> None:
    short = """
name: x
model: {model_name_or_path: m}
data: {pairs: {source: a.jsonl}, prompts: {source: b.jsonl}}
sft: {data: {source: c.jsonl}}
judge: {beta: 0.2}
noise: {threshold: {k: 20}}
sampling: {backend: {batch_size: 8}}
compute: {executor: {}}
"""
    long = (
        short.replace("source:", "type: dataset, source:")
        .replace("beta:", "type: implicit_reward, beta:")
        .replace("k:", "type: percentile, k:")
        .replace("batch_size:", "type: transformers, batch_size:")
        .replace("executor: {}", "executor: {type: local}")
    )
    assert read(short) == read(long)
    assert resolved(read(short)) == resolved(read(long))


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_seeds_have_32_bits(seed: int) -> None:
    recipe = read(f"{BASE}  shuffle_seed: {seed}\n  prompts: {{type: sandbox, seed: {seed}}}\nseed: {seed}\n")
    assert (recipe.seed, recipe.data.shuffle_seed, value(recipe, "data.prompts.seed")) == (seed, seed, seed)
    job = {"name": "j", "model": recipe.model, "reference": "r", "pairs": recipe.data.pairs, "judge": recipe.judge}
    assert JudgeJob.model_validate({**job, "seed": seed}).seed == seed
    with pytest.raises(ValidationError, match="4294967295"):
        JudgeJob.model_validate({**job, "seed": 2**32})


def test_sandbox_pairs_are_limited_and_demonstrations_are_not() -> None:
    from spa_recipes.sandbox.world import all_prompts

    assert len(all_prompts()) == SANDBOX_PROMPTS
    most = f"data.pairs={{type: sandbox, rows: {SANDBOX_PROMPTS}}}"
    recipe = read(BASE, most, "sft={data: {type: sandbox, rows: 100000}}")
    assert value(recipe, "data.pairs.rows") == SANDBOX_PROMPTS
    assert value(recipe, "sft.data.rows") == 100_000


# ---------------------------------------------------------------------------------------------- no recipe at all


def test_missing_file_names_its_neighbour() -> None:
    Path("quickstart.yaml").touch()
    with pytest.raises(RecipeError, match=r"^quickstrat\.yaml: no such file; did you mean quickstart\.yaml\?$"):
        load_recipe(Path("quickstrat.yaml"))
    with pytest.raises(RecipeError, match=r"^zzz: no such file; recipes in \.: quickstart\.yaml$"):
        load_recipe(Path("zzz"))


def test_missing_file_without_neighbours() -> None:
    with pytest.raises(
        RecipeError, match=r"^a\.yaml: no such file; check the path, or write a starter with `spa init`$"
    ):
        load_recipe(Path("a.yaml"))
    with pytest.raises(RecipeError, match=r"^no/a\.yaml: no such file; the folder no cannot be listed"):
        load_recipe(Path("no/a.yaml"))


def test_folder() -> None:
    Path("f").mkdir()
    with pytest.raises(RecipeError, match=r"^f: this is a folder, not a recipe;"):
        load_recipe(Path("f"))
    Path("f/a.yaml").touch()
    with pytest.raises(RecipeError, match=r"recipes in f: a\.yaml$"):
        load_recipe(Path("f"))


def test_path_that_cannot_be_opened() -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(Path("a\0b"))
    Path("r.yaml").touch()
    with pytest.raises(RecipeError, match=r"r\.yaml/x'?: cannot be read: Not a directory"):
        load_recipe(Path("r.yaml/x"))


def test_not_utf8() -> None:
    assert refusal(b"name: x\n# \xe4\n") == (
        "r.yaml:2: not UTF-8 text: byte 0xe4 at offset 10; save the file as UTF-8, "
        "such as by `iconv -f WINDOWS-1252 -t UTF-8`"
    )
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        assert refusal(BASE.encode(encoding)).startswith("r.yaml: UTF-16 text, not UTF-8; save the file as UTF-8")
    assert refusal(BASE.encode("utf-32")).startswith("r.yaml: UTF-32 text")


def test_huge() -> None:
    assert refusal(b"#" * (MAX_BYTES + 1)).startswith("r.yaml: larger than 1 MiB")
    assert refusal("- a\n" * 200_000).startswith("r.yaml:10000: more than 10000 keys and values")


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "---\n", "--- # x\n...\n"])
def test_empty(text: str) -> None:
    assert refusal(text) == "r.yaml: the recipe is empty; write a starter with `spa init`"


@pytest.mark.parametrize(
    ("text", "found"),
    [("- a\n", "a list"), ("3\n", "3"), ("hello\n", "'hello'"), ("null\n", "null"), ("''\n", "''"), ("[]", "a list")],
)
def test_no_mapping(text: str, found: str) -> None:
    assert refusal(text) == f"r.yaml:1: a recipe is a mapping of keys to values, not {found}; begin with name: my-run"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("name: y\n", "r.yaml:6: the key name is repeated, first at r.yaml:1; remove one of them"),
        (
            "noise: {alpha: 0.1, alpha: 0.1}",
            "r.yaml:6: the key alpha is repeated, first at r.yaml:6; remove one of them",
        ),
        ("noise:\n\talpha: 1\n", "r.yaml:7: a tab; use spaces"),
        ("noise:\t{}", "r.yaml:6: a tab; use spaces"),
        ("noise: &a {}", "r.yaml:6: anchors (&) and aliases (*) are not supported; write the value out"),
        ("noise: *a", "r.yaml:6: anchors (&) and aliases (*) are not supported; write the value out"),
        ("noise: !!python/object:os.system x", "r.yaml:6: tags (!) are not supported; remove it"),
        ("noise: !x {}", "r.yaml:6: tags (!) are not supported; remove it"),
        ("seed: !!int 3", "r.yaml:6: tags (!) are not supported; remove it"),
        ("noise:\n  <<: {alpha: 1}", "r.yaml:7: merge keys (<<) are not supported; write the keys out"),
        ("1: a", "r.yaml:6: a key must be text; remove it, or put it in quotes"),
        ("true: a", "r.yaml:6: a key must be text; remove it, or put it in quotes"),
        ("~: a", "r.yaml:6: a key must be text; remove it, or put it in quotes"),
        ("? [a]\n: b", "r.yaml:6: a key must be text; remove it, or put it in quotes"),
        ("---\nname: y", "r.yaml:6: a second document begins; keep one recipe in one file"),
        ("description: 'a\nb", "r.yaml:6: a quote or bracket that opens here is never closed; close it"),
        ('description: "a', "r.yaml:6: a quote or bracket that opens here is never closed; close it"),
        ("noise: {alpha: 1", "r.yaml:6: a quote or bracket that opens here is never closed; close it"),
        (
            "description: a: b",
            "r.yaml:6: a second ': ' in this line; check the indentation, or put the text in quotes",
        ),
        ("seed", "r.yaml:6: a key without ': '; write key: value"),
        ("description: @a", "r.yaml:6: plain text cannot begin with @; put the text in quotes"),
        ("description: `a`", "r.yaml:6: plain text cannot begin with `; put the text in quotes"),
        ("description: \x07", "r.yaml:6: the character U+0007 is not allowed; remove it"),
        ('description: "\\0"', "r.yaml:6: a NUL character in an escape; remove it"),
        ('description: "\\ud800"', "r.yaml:6: half of a surrogate pair in an escape; remove it"),
        ("seed: 9223372036854775808", "r.yaml:6: an integer beyond 64 bits; use a smaller one"),
        ("seed: " + "9" * 5000, "r.yaml:6: an integer beyond 64 bits; use a smaller one"),
        ("noise: " + "[" * 20, "r.yaml:6: nested more than 16 levels deep; no recipe needs this"),
    ],
)
def test_yaml_that_is_refused(text: str, line: str) -> None:
    assert refusal(BASE + text) == line


def test_other_bad_yaml_has_a_line() -> None:
    assert refusal(f'{BASE}description: "\\UFFFFFFFF"').startswith("r.yaml:6: not valid YAML: ")
    assert refusal(f"%YAML {'9' * 5000}.1\n---\n{BASE}").startswith("r.yaml:1: not valid YAML: ")
    assert refusal(f"{BASE}seed: 1\n]\n").startswith("r.yaml:7: ")


# ---------------------------------------------------------------------------------------------- --set


@pytest.mark.parametrize(
    ("overrides", "key", "expected"),
    [
        (["noise.alpha=0.2"], "noise.alpha", 0.2),
        (["noise.alpha=2e-1"], "noise.alpha", 0.2),
        (["noise.alpha=0.2", "noise.alpha=0.3"], "noise.alpha", 0.3),
        (["noise.lambdas=[0.5, 0.125]"], "noise.lambdas", [0.5, 0.125]),
        (["noise.lambdas=[0.5, 0.25]", "noise.lambdas.1=0"], "noise.lambdas", [0.5, 0.0]),
        (["noise={alpha: 0.2}"], "noise.alpha", 0.2),
        (["noise.enabled=false"], "noise.enabled", False),
        (["noise.threshold={type: fixed, tau: 0.4}"], "noise.threshold.tau", 0.4),
        (["model.revision=main"], "model.revision", "main"),
        (["model.revision='123'"], "model.revision", "123"),
        (["model.revision=main", "model.revision="], "model.revision", None),
        (["model.lora={}"], "model.lora.lora_r", 16),
        (["model.lora.lora_r=8"], "model.lora.lora_r", 8),
        (["name=y"], "name", "y"),
        ([" name = y "], "name", "y"),
        (["description=a=b"], "description", "a=b"),
        (["description=no"], "description", "no"),
        (["data.pairs.source=/tmp/x y.jsonl"], "data.pairs.source", "/tmp/x y.jsonl"),
        (["sft={data: {type: sandbox}}", "sft.learning_rate=1e-4"], "sft.learning_rate", 1e-4),
        (["sft.learning_rate=1e-4", "sft.data={type: sandbox}"], "sft.learning_rate", 1e-4),
        (["judge.beta=0.2"], "judge.beta", 0.2),
        (["judge.beta=0.2"], "judge.type", "implicit_reward"),
        (["judge={}"], "judge.type", "implicit_reward"),
        (["judge.type=gold", "data.pairs={type: sandbox}"], "judge.type", "gold"),
        (["noise.threshold.k=20"], "noise.threshold.k", 20.0),
        (["sampling.backend.batch_size=8"], "sampling.backend.batch_size", 8),
        (["compute.executor={}"], "compute.executor.type", "local"),
        (["data.prompts={source: p.jsonl}"], "data.prompts.source", "p.jsonl"),
        (["sft.data.source=c.jsonl"], "sft.data.type", "dataset"),
    ],
)
def test_override(overrides: list[str], key: str, expected: object) -> None:
    assert value(read(BASE, *overrides), key) == expected


def test_overrides_do_not_touch_the_text() -> None:
    Path("r.yaml").write_text(BASE)
    loaded = load_recipe(Path("r.yaml"), ["name=y"])
    assert (loaded.recipe.name, loaded.text) == ("y", BASE)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("noise.alpha", "--set noise.alpha: not of the form key=value; e.g. --set noise.alpha=0.2"),
        ("=3", "--set =3: not of the form key=value; e.g. --set noise.alpha=0.2"),
        ("a..b=3", "--set a..b=3: not of the form key=value; e.g. --set noise.alpha=0.2"),
        ("noise.alhpa=1", "--set noise.alhpa: unknown key; did you mean alpha?"),
        ("nosie.alpha=1", "--set nosie.alpha: nosie: unknown key; did you mean noise?"),
        ("noise.alpha=1", "--set noise.alpha: must be a number of at least 0 and at most 0.5, not 1"),
        ("noise={alpha: 1}", "--set noise: noise.alpha: must be a number of at least 0 and at most 0.5, not 1"),
        ("noise={a: 1, a: 1}", "--set noise: the key a is repeated, first at --set noise; remove one of them"),
        ("noise.enabled=off", "--set noise.enabled: must be true or false, not 'off'; write false"),
        ("noise.alpha=", "--set noise.alpha: must be a number of at least 0 and at most 0.5, not nothing; "
         "give a value, or remove the key for its default"),
        ("noise.alpha=[", "--set noise.alpha: a quote or bracket that opens here is never closed; close it"),
        ("noise.alpha=&a 1", "--set noise.alpha: anchors (&) and aliases (*) are not supported; write the value out"),
        ("name.x=1", "--set name.x: name is 'x' and has no keys; set name itself"),
        ("noise.lambdas.0=1", "--set noise.lambdas.0: noise.lambdas is not in the recipe; set the whole list"),
        (
            "sft.learning_rate=1e-4",
            "--set sft.learning_rate: sft.data: this key is required; add it under sft, "
            "e.g. data: {type: dataset, source: conversations.jsonl}",
        ),
        ("judge.betta=1", "--set judge.betta: unknown key; did you mean beta?"),
        ("noise.threshold.tau=0.3", "--set noise.threshold.tau: unknown key; add type: fixed"),
        (
            "sampling.max_tokens=1500",
            "--set sampling.max_tokens: model.max_prompt_length (1024) + sampling.max_tokens (1500) must not exceed "
            "model.max_length (2048); set sampling.max_tokens to 1024, or model.max_length to 2524",
        ),
        ("\udcff=1", "--set \\udcff: unknown key; allowed here: name, "),
    ],
)  # fmt: skip
def test_override_that_is_refused(override: str, line: str) -> None:
    if line.endswith(", "):
        assert refusal(BASE, override).startswith(line)
    else:
        assert refusal(BASE, override) == line


def test_index_beyond_the_list() -> None:
    lambdas = f"{BASE}noise: {{lambdas: [1, 2]}}\n"
    problem = "noise.lambdas is a list with indices 0 to 1; use one of these, or set the whole list"
    assert refusal(lambdas, "noise.lambdas.2=1") == f"--set noise.lambdas.2: {problem}"
    assert refusal(lambdas, "noise.lambdas.x=1") == f"--set noise.lambdas.x: {problem}"


def test_another_type_wants_the_whole_section() -> None:
    text = f"{BASE}judge: {{type: implicit_reward, beta: 0.2}}\n"
    assert refusal(text, "judge.type=random") == (
        "r.yaml:6: judge.beta: unknown key; replace the whole section: --set 'judge={type: random}'"
    )
    assert read(text, "judge={type: random}").judge.type == "random"


def test_another_type_for_a_section_without_one() -> None:
    text = f"{BASE}judge: {{beta: 0.2}}\n"
    assert refusal(text, "judge.type=random") == (
        "r.yaml:6: judge.beta: unknown key; replace the whole section: --set 'judge={type: random}'"
    )
    assert read(text, "judge.beta=0.3") == read(BASE, "judge={beta: 0.3}")


def test_places_follow_an_override() -> None:
    """A problem in the file that an override replaces is gone; one that it brings has its place."""
    text = f"{BASE}noise: {{alpha: 7, lambdas: [a]}}\n"
    assert refusal(text, "noise.alpha=0.1").startswith("r.yaml:6: noise.lambdas.0: must be a number")
    assert refusal(text, "noise={alpha: 8}").startswith("--set noise: noise.alpha: must be")
    assert read(text, "noise={alpha: 0.5}").noise.alpha == 0.5


# ---------------------------------------------------------------------------------------------- several problems


def test_every_problem_is_told_in_the_order_of_the_file() -> None:
    text = "data: {seed_labels: -1}\nmodel: {dtype: bf16, max_length: 0}\nseeed: 3\n"
    Path("r.yaml").write_text(text)
    with pytest.raises(InvalidRecipeError) as caught:
        load_recipe(Path("r.yaml"), ["noise.alpha=9"])
    lines = [str(error) for error in (caught.value, *caught.value.others)]
    assert [line.partition("; ")[0] for line in lines] == [
        "r.yaml: name: this key is required",
        "r.yaml:1: data.pairs: this key is required",
        "r.yaml:1: data.seed_labels: must be an integer of at least 0 or a number above 0 and at most 1, not -1",
        "r.yaml:2: model.model_name_or_path: this key is required",
        "r.yaml:2: model.dtype: must be one of auto, float32, bfloat16, float16, not 'bf16'",
        "r.yaml:2: model.max_length: must be an integer of at least 1, not 0",
        "r.yaml:3: seeed: unknown key",
        "--set noise.alpha: must be a number of at least 0 and at most 0.5, not 9",
    ]
    assert all(type(error) is RecipeError for error in caught.value.others)


def test_very_many_problems_are_cut() -> None:
    Path("r.yaml").write_text(BASE + "".join(f"k{i}: 1\n" for i in range(50)))
    with pytest.raises(InvalidRecipeError) as caught:
        load_recipe(Path("r.yaml"))
    assert len(caught.value.others) == MAX_PROBLEMS - 1
    assert str(caught.value.others[-1]) == "and 31 more problems"
