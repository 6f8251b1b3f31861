"""Rows of the sandbox, cheap counts, and fingerprints of sources."""

import os
from pathlib import Path

import pytest

from spa_recipes.data.places import content_fingerprint, count_rows
from spa_recipes.data.sources import read_conversations, read_pairs, read_prompts
from spa_recipes.errors import DataError
from spa_recipes.recipe.schema import DatasetSource, SandboxSource
from spa_recipes.state.digests import DigestMemo
from tests.kit.data import GOOD, source
from tests.kit.data_forms import FILES, write_json, write_jsonl


def test_sandbox_rows() -> None:
    pairs = read_pairs(SandboxSource(type="sandbox", rows=20, seed=3))
    assert len(pairs.rows) == 20
    assert {"gold_chosen", "gold_rejected"} <= set(pairs.rows[0])
    assert pairs.rows[0]["row"] == 1
    assert len(read_conversations(SandboxSource(type="sandbox", rows=20)).rows) == 20
    assert [row["prompt_id"] for row in read_prompts(SandboxSource(type="sandbox", rows=20, seed=3)).rows] == [
        row["prompt_id"] for row in pairs.rows
    ]
    with pytest.raises(DataError, match="sandbox: the sandbox world has"):
        read_pairs(SandboxSource(type="sandbox", rows=10**6))


@pytest.mark.parametrize(
    ("kind", "count"), [("jsonl", 3), ("ascii_jsonl", 3), ("parquet", 3), ("json", None), ("csv", None)]
)
def test_cheap_counts(kind: str, count: int | None, tmp_path: Path) -> None:
    assert count_rows(source(FILES[kind](tmp_path, [GOOD] * 3))) == count


def test_counts_of_other_sources(tmp_path: Path) -> None:
    assert count_rows(source("o/n")) is None
    assert count_rows(source(tmp_path)) is None
    assert count_rows(SandboxSource(type="sandbox", rows=7)) == 7
    with pytest.raises(DataError, match="no such file or folder"):
        count_rows(source(tmp_path / "none.jsonl"))


def fingerprint(given: DatasetSource | SandboxSource) -> str:
    return content_fingerprint(given, DigestMemo(Path("nowhere/memo.json")).of)


def test_fingerprints_follow_the_content(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, [GOOD])
    first = fingerprint(source(path))
    os.utime(path, (0, 0))
    copy = path.rename(tmp_path / "moved.jsonl")
    assert fingerprint(source(copy)) == first
    copy.write_bytes(copy.read_bytes() + b"\n")
    assert fingerprint(source(copy)) != first
    with pytest.raises(DataError, match="no such file or folder"):
        fingerprint(source(tmp_path / "none.jsonl"))


def test_fingerprints_of_folders(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    (folder / "data").mkdir(parents=True)
    write_json(folder / "data", [GOOD])
    first = fingerprint(source(folder))
    folder = folder.rename(tmp_path / "b")
    assert fingerprint(source(folder)) == first
    (folder / "data" / "data.json").rename(folder / "data" / "other.json")
    assert fingerprint(source(folder)) != first


def test_fingerprints_of_other_sources() -> None:
    assert fingerprint(source("o/n")) == "hub:o/n@main"
    assert fingerprint(source("o/n", revision="abc", config_name="en")) == "hub:o/n@abc#en"
    assert fingerprint(SandboxSource(type="sandbox", rows=5, seed=1)) == "sandbox:rows=5,seed=1"
