"""`spa validate` says what is wrong with local data before anything runs."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from spa_recipes.run import packages
from tests.kit.data import GOOD
from tests.kit.models import judge_inputs, model_folder
from tests.kit.recipes import write_recipe


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def recipe_of(source: str) -> dict[str, Any]:
    parts = {"seed_labels": 1, "prompts_per_iteration": []}
    return {"name": "r", "model": {"model_name_or_path": "o/m"}, "data": {"pairs": {"source": source}, **parts}}


ROWS = json.dumps([GOOD]).encode()
CONFIGS = b"---\nconfigs:\n- {config_name: a, data_files: a.jsonl}\n- {config_name: b, data_files: b.jsonl}\n---\n"


@pytest.mark.parametrize(
    ("files", "source", "words"),
    [
        ({}, "none.jsonl", "no such file or folder"),
        ({"d.xlsx": b"x"}, "d.xlsx", "files of kind .xlsx are not read"),
        ({"d.csv": b"prompt~chosen~rejected\na~b~c\n"}, "d.csv", "columns of no known form: prompt~chosen~rejected"),
        ({"d.json": json.dumps({"a": {"0": "x"}}, indent=1).encode()}, "d.json", "one object with the keys a"),
        ({"d.jsonl": b"PK\x03\x04"}, "d.jsonl", "this is a zip archive"),
        ({"d.jsonl.gz": b"\x1f\x8bbroken"}, "d.jsonl.gz", "cannot be unpacked"),
        ({"d.jsonl": b'{"a": 1}\n'}, "d.jsonl", "columns of no known form: a"),
        ({"d/README.md": CONFIGS, "d/a.jsonl": b"", "d/b.jsonl": b""}, "d", "set config_name to one of: a, b"),
        ({"d/other.txt": b""}, "d", "not a dataset folder"),
    ],
)
def test_data_that_cannot_be_read(
    files: dict[str, bytes], source: str, words: str, spa_here: Any, tmp_path: Path
) -> None:
    for name, content in files.items():
        write(tmp_path / name, content)
    write_recipe(tmp_path / "r.yaml", recipe_of(source))
    done = spa_here("validate", "r.yaml")
    assert done.code == 3, done.out
    assert done.err.startswith("error: data.pairs.source: ")
    assert words in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.json", ROWS),
        ("d.json", b'{"data": ' + ROWS + b"}"),
        ("d.json.gz", gzip.compress(ROWS, mtime=0)),
        ("d.csv", b"prompt;chosen;rejected\na;b;c\n"),
    ],
)
def test_data_that_can_be_read(name: str, content: bytes, spa_here: Any, tmp_path: Path) -> None:
    write(tmp_path / name, content)
    write_recipe(tmp_path / "r.yaml", recipe_of(name))
    done = spa_here("validate", "r.yaml")
    assert (done.code, done.err) == (0, "")


def written(folder: Path, lines: list[dict[str, str]], **data: Any) -> None:
    write(folder / "d.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    recipe = recipe_of("d.jsonl")
    recipe["data"].update(data)
    write_recipe(folder / "r.yaml", recipe)


def test_all_bad_rows_are_named_up_to_twenty(spa_here: Any, tmp_path: Path) -> None:
    written(tmp_path, [GOOD] * 20 + [{"prompt": "x"}] * 23)
    done = spa_here("validate", "r.yaml")
    assert done.code == 3
    lines = done.err.splitlines()
    assert [f"row {number}: " in line for number, line in enumerate(lines[:20], start=21)] == [True] * 20
    assert lines[20].startswith("error: data.pairs.source: d.jsonl: 3 more rows are malformed; ")
    written(tmp_path, [GOOD] * 20 + [{"prompt": "x"}], pairs={"source": "d.jsonl", "on_bad_row": "skip"})
    assert spa_here("validate", "r.yaml").code == 0


def test_a_tie_is_no_bad_row(spa_here: Any, tmp_path: Path) -> None:
    answers = {"prompt": "p", "response_a": "a", "response_b": "b"}
    written(tmp_path, [{**answers, "winner": name} for name in ("a", "tie", "b", "a")])
    assert spa_here("validate", "r.yaml").code == 0


@pytest.mark.parametrize("command", ["validate", "plan", "run"])
def test_more_rows_than_there_are(command: str, spa_here: Any, tmp_path: Path) -> None:
    written(tmp_path, [GOOD] * 50, seed_labels=500, prompts_per_iteration=[1000, 2000])
    done = spa_here(command, "r.yaml")
    words = "ask for 3,500 rows, but data.pairs has 50"
    assert words in (done.out if command == "plan" else done.err)
    assert done.code == (0 if command == "plan" else 3)


def test_packages_that_are_not_here(spa_here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "is_installed", lambda name: False)
    written(tmp_path, [GOOD] * 5)
    asked = (
        "tracking.report_to=[wandb, tensorboard]",
        "model.lora={load_in_4bit: true}",
        "compute.executor={type: accelerate, num_processes: 1, config_file: none.yaml}",
    )
    settings = [word for one in asked for word in ("--set", one)]
    for command in ("validate", "plan"):
        done = spa_here(command, "r.yaml", *settings)
        assert done.code == 0
        for words in ("wandb is not", "tensorboard is not", "need peft", "need bitsandbytes", "no file none.yaml"):
            assert words in done.out
    done = spa_here("run", "r.yaml", "--trust", *settings)
    assert done.code == 2
    assert "tracking.report_to: wandb is not installed here; pip install wandb" in done.err


def test_lengths_of_a_local_model_come_with_values_that_fit(spa_here: Any, tmp_path: Path) -> None:
    model_folder(tmp_path / "m", {"max_position_embeddings": 512})
    written(tmp_path, [GOOD] * 5)
    done = spa_here("validate", "r.yaml", "--set", "model.model_name_or_path=m")
    assert done.code == 2
    assert done.err.rstrip().endswith(
        "set model.max_length to 512, model.max_prompt_length to 256 and sampling.max_tokens to 256, or less"
    )


def test_an_example_as_the_model_gets_it(spa_here: Any, tmp_path: Path) -> None:
    judge_inputs(tmp_path, 3)
    write_recipe(tmp_path / "r.yaml", recipe_of("pairs.jsonl"))
    lengths = ("--set", "model.model_name_or_path=policy", "--set", "model.max_length=128")
    done = spa_here(
        "validate", "r.yaml", "--show-example", *lengths, "--set", "model.max_prompt_length=64", "--set",
        "sampling.max_tokens=32",
    )  # fmt: skip
    assert (done.code, done.err) == (0, "")
    shown = done.out.split("row 1, ")
    assert len(shown) == 3
    for part in shown[1:]:
        start, answer = map(int, re.findall(r"(\d+) \+ (\d+) tokens", part)[0])
        ids = json.loads(re.findall(r"ids: (\[.*\])", part)[0])
        assert len(ids) == start + answer
        assert f"the response starts at token {start} " in part
