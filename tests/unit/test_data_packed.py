"""Files as people have them: packed, with other delimiters, with an object at the top, in parts, in a cache."""

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spa_recipes.data import parquet
from spa_recipes.data.places import count_rows
from spa_recipes.data.raw import read_raw
from spa_recipes.data.sources import read_pairs
from tests.kit.data import GOOD, error_of, source
from tests.kit.data_forms import save_to_disk, write_csv, write_json, write_jsonl, write_parquet

ROWS = [{**GOOD, "prompt": f"q{i}"} for i in range(5)]


def prompts(path: Path) -> list[str]:
    return [row["prompt"][0]["content"] for row in read_pairs(source(path)).rows]


ALL = [row["prompt"] for row in ROWS]


def packed(path: Path, suffix: str) -> Path:
    raw = path.read_bytes()
    codec = pa.Codec("zstd")
    path.unlink()
    path = path.with_name(path.name + suffix)
    path.write_bytes(gzip.compress(raw) if suffix == ".gz" else codec.compress(raw, asbytes=True))
    return path


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("write", [write_jsonl, write_json, write_csv])
def test_packed_files(write: Any, suffix: str, tmp_path: Path) -> None:
    path = packed(write(tmp_path, ROWS), suffix)
    assert prompts(path) == ALL
    assert count_rows(source(path)) is None
    (tmp_path / "folder").mkdir()
    path.rename(tmp_path / "folder" / path.name)
    assert prompts(tmp_path / "folder") == ALL


def test_a_packed_file_under_a_name_that_does_not_say_so(tmp_path: Path) -> None:
    path = packed(write_jsonl(tmp_path, ROWS), ".gz").rename(tmp_path / "data.jsonl")
    assert prompts(path) == ALL
    assert count_rows(source(path)) is None


def test_a_packed_file_that_is_cut_off_or_grows_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = packed(write_jsonl(tmp_path, ROWS * 100), ".gz")
    path.write_bytes(path.read_bytes()[:-20])
    assert "cannot be unpacked" in error_of(read_pairs, path).what
    path.write_bytes(gzip.compress(json.dumps({**GOOD, "chosen": "x" * 2**22}).encode()))
    monkeypatch.setattr(parquet, "ALWAYS_READ_BYTES", 2**20)
    assert "bytes become more than 100 times as many when unpacked" in error_of(read_pairs, path).what


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (b"PK\x03\x04xxxx", "a zip archive; unpack it"),
        ('{"prompt"'.encode("utf-16"), "UTF-16 text, not UTF-8"),
        (b"PAR1xxxx", "a Parquet file; give it a name that ends in .parquet"),
        (b"BZh91AY", "packed with bzip2"),
    ],
)
@pytest.mark.parametrize("name", ["d.jsonl", "d.csv", "d.json"])
def test_what_a_text_file_is_instead(raw: bytes, what: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(raw)
    assert what in str(error_of(read_pairs, tmp_path / name))


@pytest.mark.parametrize(("name", "mark"), [("d.tsv", "\t"), ("d.csv", ";"), ("d.csv", "\t"), ("d.csv", "|")])
def test_delimiters(name: str, mark: str, tmp_path: Path) -> None:
    lines = [mark.join(("prompt", "chosen", "rejected")), *(mark.join((text, "a, b", "c")) for text in ALL)]
    (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    assert prompts(tmp_path / name) == ALL


def test_words_that_mean_nothing_elsewhere_are_text(tmp_path: Path) -> None:
    rows = [{**GOOD, "chosen": word} for word in ("NA", "null", "nan", "None", "N/A", "-")]
    path = write_csv(tmp_path, rows)
    (tmp_path / "folder").mkdir()
    alone = read_pairs(source(path)).rows
    path.rename(tmp_path / "folder" / "train.csv")
    assert [row["chosen"][0]["content"] for row in alone] == [row["chosen"] for row in rows]
    assert read_pairs(source(tmp_path / "folder")).rows == alone


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("top", [{"data": ROWS}, {"version": "1", "rows": ROWS, "meta": {"a": 1}}])
def test_an_object_with_the_rows_in_it(top: dict[str, Any], indent: int | None, tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text(json.dumps(top, indent=indent))
    assert prompts(tmp_path / "d.json") == ALL


@pytest.mark.parametrize("top", [{"prompt": {"0": "a"}, "chosen": {"0": "b"}}, {"a": ROWS, "b": ROWS}])
def test_another_object_at_the_top_says_its_keys(top: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text(json.dumps(top, indent=1))
    assert error_of(read_pairs, tmp_path / "d.json").what == (
        f"one object with the keys {', '.join(top)} and not a list of rows"
    )


def test_one_row_over_several_lines_is_a_row(tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text(json.dumps([GOOD]))
    one = read_pairs(source(tmp_path / "d.json")).rows
    (tmp_path / "d.json").write_text(json.dumps(GOOD))
    assert read_pairs(source(tmp_path / "d.json")).rows == one


@pytest.mark.parametrize("rows", [0, 1, 3, 5000])
@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_is_read_piece_by_piece(rows: int, indent: int | None, tmp_path: Path) -> None:
    text = [{**GOOD, "prompt": f"q{i}", "n": i, "m": [1, {"x": 'a"]}, '}]} for i in range(rows)]
    (tmp_path / "d.json").write_text(" \n" + json.dumps(text, indent=indent) + "\n ")
    if rows:
        assert prompts(tmp_path / "d.json") == [row["prompt"] for row in text]
    for damage in ("[1,]", '[{"a": 1} {"b": 2}]', "[] 3", '[{"a": 1}', '[{"a": 1},'):
        (tmp_path / "d.json").write_text(damage)
        assert "JSON" in str(error_of(read_pairs, tmp_path / "d.json")) or "end of the array" in str(
            error_of(read_pairs, tmp_path / "d.json")
        )


def test_a_long_element_goes_over_many_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spa_recipes.data.json_files._BYTES_AT_ONCE", 64)
    rows = [{**GOOD, "prompt": "q\n" * i, "chosen": "x" * 7 * i + "."} for i in range(1, 40)]
    (tmp_path / "d.json").write_text(json.dumps(rows, indent=1))
    assert [row["chosen"][0]["content"] for row in read_pairs(source(tmp_path / "d.json")).rows] == [
        row["chosen"] for row in rows
    ]


def test_a_column_that_is_there_twice(tmp_path: Path) -> None:
    table = pa.table([["a"], ["b"], ["c"], ["d"]], names=["prompt", "chosen", "rejected", "chosen"])
    pq.write_table(table, tmp_path / "d.parquet")
    assert "the column chosen is there twice" in str(error_of(read_pairs, tmp_path / "d.parquet"))


# --- folders


def part(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_parquet(folder, rows).rename(folder / name)


def test_parts_of_a_dataset_that_are_missing_or_left_over(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    part(folder, "train-00000-of-00002.parquet", ROWS[:2])
    error = error_of(read_pairs, tmp_path)
    assert error.what == "1 of 2 files are missing, such as data/train-00001-of-00002.parquet"
    part(folder, "train-00001-of-00002.parquet", ROWS[2:])
    assert prompts(tmp_path) == ALL
    part(folder, "train-00000-of-00001.parquet", ROWS)
    error = error_of(read_pairs, tmp_path)
    assert error.what.startswith("files of two versions of the dataset: data/train-*-of-00001.parquet and ")


def test_two_snapshots_in_a_cache_are_two_datasets(tmp_path: Path) -> None:
    cache = tmp_path / "datasets--o--n"
    part(cache / "snapshots" / "abc", "train.parquet", ROWS)
    assert prompts(cache) == ALL
    part(cache / "snapshots" / "def", "train.parquet", ROWS)
    error = error_of(read_pairs, cache)
    assert error.what == "the folder holds 2 snapshots: snapshots/abc, snapshots/def"
    assert error.fix == f"name one of them, such as {cache / 'snapshots' / 'abc'}"
    assert prompts(cache / "snapshots" / "def") == ALL


def test_a_folder_of_several_saved_datasets_says_which(tmp_path: Path) -> None:
    for name in ("en", "fr"):
        (tmp_path / "all").mkdir(exist_ok=True)
        save_to_disk(tmp_path, ROWS[:1]).rename(tmp_path / "all" / name)
    error = error_of(read_pairs, tmp_path / "all")
    assert error.what == "the folder holds several datasets: en, fr"
    assert error.fix == f"name one of them, such as {tmp_path / 'all' / 'en'}"


@pytest.mark.parametrize("around", ["%s", '{"meta": {"n": 1}, "data": %s}'])
def test_rows_on_one_line_are_never_in_memory_together(around: str, tmp_path: Path) -> None:
    rows = ",".join(json.dumps({**GOOD, "prompt": f"{i} " + "x" * 20_000}) for i in range(2000))
    (tmp_path / "d.json").write_text(around % f"[{rows}]")
    del rows
    tracemalloc.start()
    found = read_raw(source(tmp_path / "d.json"))
    count = sum(1 for row in found if row.value is not None)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 2000
    assert most < 16 * 1024 * 1024  # the file has 40 MB
