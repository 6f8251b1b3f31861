"""`spa validate` says what is wrong with local data before anything runs."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tests.kit.data import GOOD
from tests.kit.recipes import write_recipe


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def recipe_of(source: str) -> dict[str, Any]:
    return {"name": "r", "model": {"model_name_or_path": "o/m"}, "data": {"pairs": {"source": source}}}


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
