"""Malformed recipes and data through the command line: exit code, one line with place and remedy, nothing left."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spa_recipes.data.rows import read_lines
from spa_recipes.data.sources import read_pairs
from spa_recipes.errors import RecipeError
from spa_recipes.recipe.load import load_recipe
from spa_recipes.recipe.schema import Data, DatasetSource
from tests.kit.cli import one_error
from tests.kit.data import split_rows
from tests.kit.recipes import merged, mini, write_recipe

GOOD = """\
name: x
model: {model_name_or_path: sandbox, max_length: 128, max_prompt_length: 48}
data: {pairs: {type: sandbox, rows: 400}, seed_labels: 60, prompts_per_iteration: [32, 48]}
sft: {data: {type: sandbox, rows: 200}}
sampling: {max_tokens: 32}
"""
LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
RECIPES: dict[str, tuple[bytes | str, str, str]] = {
    "syntax": (GOOD + "noise: {alpha: 0.1\n", "r.yaml:6: ", "close it"),
    "tab": (GOOD + "noise:\n\talpha: 0.1\n", "r.yaml:7: a tab", "use spaces"),
    "twice": (GOOD + "name: y\n", "r.yaml:6: the key name is repeated", "remove one"),
    "misspelt": (GOOD + "nois: {}\n", "r.yaml:6: nois: unknown key", "did you mean noise?"),
    "type": (GOOD + "seed: many\n", "r.yaml:6: seed: must be an integer", "not 'many'"),
    "value": (GOOD + "noise: {alpha: 0.7}\n", "r.yaml:6: noise.alpha: must be", "at most 0.5"),
    "combination": (GOOD + "refine: {global_batch_size: 6, per_device_train_batch_size: 4}\n",
                    "r.yaml:6: refine.global_batch_size: ", "must be a multiple of"),
    "lambdas": (GOOD + "noise: {lambdas: [0.5]}\n", "r.yaml:6: noise.lambdas: has 1 entry for 2 iterations",
                "one per iteration"),
    "share": (GOOD.replace("max_tokens: 32", "max_tokens: 32, max_empty: 1.5"), "r.yaml:5: sampling.max_empty: must be",
              "at most 1"),
    "latin-1": (GOOD.encode() + b"description: caf\xe9\n", "r.yaml:6: not UTF-8 text: byte 0xe9 at offset",
                "save the file as UTF-8"),
    "empty": ("", "r.yaml: the recipe is empty", "spa init"),
    "huge": (GOOD + "#" * 2**20, "r.yaml: larger than 1 MiB", "name a YAML recipe"),
    "laughs": (LAUGHS, "r.yaml:1: anchors (&) and aliases (*) are not supported", "write the value out"),
    "python": (GOOD + "description: !!python/object/apply:os.system [touch x]\n", "r.yaml:6: tags (!)", "remove it"),
    "above": (GOOD.replace("name: x", "name: ../x"), "r.yaml:1: name: must be text that matches", "not '../x'"),
    "absolute": (GOOD.replace("name: x", "name: /tmp/x"), "r.yaml:1: name: must be", "not '/tmp/x'"),
    "dots": (GOOD.replace("name: x", "name: .."), "r.yaml:1: name: must be", "not '..'"),
    "newline": (GOOD.replace("name: x", 'name: "x\\n"'), "r.yaml:1: name: must be", "e.g. name: my-run"),
}  # fmt: skip


@pytest.mark.parametrize("case", RECIPES)
def test_a_malformed_recipe(case: str, spa_here: Any, tmp_path: Path) -> None:
    content, place, remedy = RECIPES[case]
    (tmp_path / "r.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    line = one_error(spa_here("run", "r.yaml"), 2)
    assert line.startswith(place)
    assert remedy in line
    assert [path.name for path in tmp_path.iterdir()] == ["r.yaml"]


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/b", "..", "-x"])
def test_no_override_leads_a_run_out_of_its_folder(name: str, spa_here: Any, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(GOOD)
    assert one_error(spa_here("run", "r.yaml", "--set", f"name={name}"), 2).startswith("--set name: must be text")
    assert [path.name for path in tmp_path.iterdir()] == ["r.yaml"]


# ---------------------------------------------------------------------------------------------- data

ROW = {"prompt": "What?", "chosen": "That.", "rejected": "No."}
LINES = "".join(json.dumps({**ROW, "prompt": f"What {i}?"}) + "\n" for i in range(8)).encode()


def parquet(folder: Path) -> bytes:
    pq.write_table(pa.Table.from_pylist([ROW] * 50), folder / "whole.parquet")
    raw = (folder / "whole.parquet").read_bytes()
    (folder / "whole.parquet").unlink()
    return raw[: len(raw) // 2]


DATA: dict[str, tuple[str, bytes, str, str]] = {
    "empty": ("d.jsonl", b"", "d.jsonl: no rows", "not empty"),
    "no column": ("d.jsonl", LINES + b'{"prompt": "a", "chosen": "b"}\n', "d.jsonl:9: no column `rejected`",
                  "on_bad_row: skip"),
    "null": ("d.jsonl", LINES + b'{"prompt": "a", "chosen": "b", "rejected": null}\n', "d.jsonl:9: `rejected` is null",
             "on_bad_row: skip"),
    "equal": ("d.jsonl", LINES + b'{"prompt": "a", "chosen": "b", "rejected": "b"}\n',
              "d.jsonl:9: the chosen response equals", "on_bad_row: skip"),
    "latin-1": ("d.jsonl", LINES + b'{"prompt": "caf\xe9"}\n',
                f"d.jsonl:9: not UTF-8 at byte {len(LINES) + 15}", "save the file as UTF-8"),
    "cut off": ("d.jsonl", LINES[:-9], "d.jsonl:8: the line is cut off or not JSON", "one JSON object per line"),
    "ragged": ("d.csv", b"prompt,chosen,rejected\na,b,c\na,b,c,d\n", "d.csv, row 2: 4 cells under a header of 3",
               "quote cells"),
    "cut parquet": ("d.parquet", b"", "d.parquet: not a Parquet file, or damaged or cut off",
                    "write it again"),
    "too many prompts": ("d.jsonl", LINES, "data.prompts_per_iteration [32, 48] ask for", "lower"),
    "no seed row": ("d.jsonl", LINES, "data.seed_labels 0.01 of 8 rows is no row at all", "raise the fraction"),
}  # fmt: skip


def recipe_for(name: str, seed_labels: float = 2, **source: Any) -> dict[str, Any]:
    recipe = mini(sft={"data": {"type": "sandbox"}}, evaluation={"reward": "none"})
    recipe["data"] = {**recipe["data"], "pairs": {"source": name, **source}, "seed_labels": seed_labels, "heldout": 0}
    return merged(recipe, {"compute": {"executor": {"type": "local"}}})


@pytest.mark.parametrize("case", DATA)
def test_malformed_data(case: str, spa_here: Any, tmp_path: Path) -> None:
    name, content, place, remedy = DATA[case]
    (tmp_path / name).write_bytes(parquet(tmp_path) if case == "cut parquet" else content)
    recipe = recipe_for(name, 0.01 if case == "no seed row" else 2)
    if case != "too many prompts":
        recipe["data"]["prompts_per_iteration"] = [1, 1]
    write_recipe(tmp_path / "r.yaml", recipe)
    line = one_error(spa_here("run", "r.yaml"), 3)
    assert place in line
    assert remedy in line
    assert not list(tmp_path.glob("runs/**/output*/*.jsonl"))
    assert not list(tmp_path.glob("runs/**/manifest.json"))


def test_skipped_rows_are_counted_and_shown(spa_here: Any, tmp_path: Path) -> None:
    """Of the pairs and of the prompts; duplicate prompts are dropped and shown as well."""
    bad = b'{"prompt": "a", "chosen": "b"}\n'
    (tmp_path / "d.jsonl").write_bytes(LINES + bad)
    (tmp_path / "p.jsonl").write_bytes(LINES + bad * 2 + b"{\n" + b'{"prompt": "new"}\n' * 2)
    recipe = recipe_for("d.jsonl", on_bad_row="skip")
    recipe["data"] |= {"prompts": {"source": "p.jsonl", "on_bad_row": "skip"}, "prompts_per_iteration": [13]}
    write_recipe(tmp_path / "r.yaml", merged(recipe, {"noise": {"lambdas": [0.0]}}))
    refused = spa_here("run", "r.yaml", "--until", "data")
    assert refused.code == 3
    assert "data.pairs: 1 of 9 rows (11.1%) give nothing, more than max_skipped (5.0%); 1 of them:" in refused.err
    assert "no column `rejected` (row 9); mend the data, or set max_skipped to 0.12" in refused.err
    done = spa_here("run", "r.yaml", "--until", "data", "--set", "data.max_skipped=0.5")
    assert done.code == 0, done.err
    (manifest,) = tmp_path.glob("runs/mini/stages/*-data-*/manifest.json")
    metrics = json.loads(manifest.read_text())["metrics"]
    assert (metrics["skipped"], metrics["skipped_prompts"]) == (1, 5)
    assert metrics["skipped_why"] == {"no column `rejected`": [1, [9]]}
    assert "bad rows skipped 1" in done.out
    assert "bad rows of the prompts skipped 5" in done.out
    assert "left out of their part (skipped, or with a prompt of another part)" in done.out


def test_line_ends_marks_and_separators_are_text_or_nothing(tmp_path: Path) -> None:
    """CRLF and a byte order mark are no content; U+2028 inside a text does not end its line."""
    rows = [{**ROW, "prompt": "one\u2028two\u0085three"}, ROW]
    path = tmp_path / "d.jsonl"
    lines = [json.dumps(row, ensure_ascii=False).encode() for row in rows]
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines) + b"\r\n")
    read = read_pairs(DatasetSource(source=str(path))).rows
    assert [row["prompt"][0]["content"] for row in read] == ["one\u2028two\u0085three", "What?"]
    assert [row["chosen"][0]["content"] for row in read] == ["That.", "That."]


def test_a_prompt_of_a_million_characters_is_cut_and_not_an_error(tmp_path: Path) -> None:
    from spa_recipes.data.chat import Renderer
    from spa_recipes.sandbox.model import _build_tokenizer

    path = tmp_path / "d.jsonl"
    long = {**ROW, "prompt": ("x" * 99 + " ") * 10_001}
    path.write_text(json.dumps(long) + "\n" + json.dumps(ROW) + "\n")
    rows = read_pairs(DatasetSource(source=str(path))).rows
    assert len(rows[0]["prompt"][0]["content"]) > 10**6
    data = Data(pairs=DatasetSource(source="x"), seed_labels=2, prompts_per_iteration=[])
    assert len(split_rows(rows, None, data).seed) == 2
    renderer = Renderer(_build_tokenizer(), max_prompt_length=48, max_length=128)
    rendered = renderer.render_prompt(rows[0]["prompt"])
    assert (len(rendered.ids), rendered.cut) == (48, True)
    assert renderer.response_ids(rows[0]["prompt"], "that")[-1] == renderer.end_of_turn_id


# ---------------------------------------------------------------------------------------------- damaged at random

QUICK = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))


@QUICK
@given(at=st.floats(0, 1), gone=st.integers(0, 9), new=st.binary(max_size=9))
def test_a_recipe_with_damaged_bytes(tmp_path: Path, at: float, gone: int, new: bytes) -> None:
    """A good recipe in which some bytes are replaced: a recipe still, or one line that names the file."""
    raw = GOOD.encode()
    start = int(at * len(raw))
    path = tmp_path / "r.yaml"
    path.write_bytes(raw[:start] + new + raw[start + gone :])
    try:
        load_recipe(path)
    except RecipeError as error:
        for problem in (error, *getattr(error, "others", ())):
            assert str(problem).startswith((str(path), "and "))
            assert "\n" not in str(problem)


@QUICK
@given(at=st.floats(0, 1), gone=st.integers(0, 9), new=st.binary(max_size=9))
def test_jsonl_with_damaged_bytes(tmp_path: Path, at: float, gone: int, new: bytes) -> None:
    """Every line is an object or an error with its place; whole lines after a damaged one are still read."""
    start = int(at * len(LINES))
    path = tmp_path / "d.jsonl"
    path.write_bytes(LINES[:start] + new + LINES[start + gone :])
    lines = list(read_lines(path))
    for line in lines:
        assert (line.value is None) != (line.error is None)
        assert line.error is None or str(line.error).startswith(f"{path}:{line.number}: ")
    # A change of up to nine bytes touches at most two lines.
    assert sum(json.dumps(line.value).encode() + b"\n" in LINES for line in lines if line.value) >= 6


@QUICK
@given(st.binary(max_size=400))
def test_any_bytes_as_jsonl(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(raw)
    for line in read_lines(path):
        assert (line.value is None) != (line.error is None)
        assert line.error is None or "\n" not in str(line.error)
