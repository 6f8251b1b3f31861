"""Files and folders of datasets: what cannot be read, what looks local, which split is meant."""

from pathlib import Path

import datasets
import pytest

from spa_recipes.data.places import count_rows, local_path
from spa_recipes.data.sources import read_pairs
from spa_recipes.errors import DataError
from tests.kit.data import GOOD, error_of, source
from tests.kit.data_forms import save_dict_to_disk, save_to_disk, user, write_csv, write_jsonl, write_parquet


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("a.jsonl", b"", "no rows; give a dataset that is not empty"),
        ("a.jsonl", b"\n \n", "no rows"),
        ("a.json", b"", "no rows"),
        ("a.json", b"[]", "no rows"),
        ("a.csv", b"", "no rows"),
        ("a.csv", b"prompt,chosen,rejected\n", "no rows"),
        ("a.json", b'[{"prompt": ', "not JSON, or cut off"),
        ("a.json", b"3", "not an array of objects but a int"),
        ("a.json", b"[3]", "row 1: not a JSON object but a int"),
        ("a.json", b'["\xff"]', "not UTF-8 at byte 2; save the file as UTF-8"),
        ("a.json", b"[" * 100_000, "JSON is nested too deeply"),
        ("a.parquet", b"", "not a Parquet file, or damaged or cut off after row 0"),
        ("a.parquet", b"PAR1 something", "not a Parquet file"),
        ("a.csv", b"prompt,chosen,rejected\na,b\n", "row 1: 2 cells under a header of 3; quote cells that hold commas"),
        ("a.csv", b'prompt,chosen,rejected\na,b,"c\n', "not CSV"),
        ("a.csv", b"prompt,prompt\na,b\n", "a.csv:1: the header names a column twice"),
        ("a.csv", b"prompt,chosen,rejected\na,\xe9,c\n", "not UTF-8 at byte 25"),
        ("a.csv", b"chosen,rejected\n\"[{'role': 'user', 'content': 'x'}]\",b\n", "as Python prints them"),
        ("a.xlsx", b"x", "files of kind .xlsx are not read; give a .jsonl"),
        ("a", b"x", "files of kind without suffix are not read"),
    ],
)
def test_unreadable_files(name: str, raw: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(raw)
    error = error_of(read_pairs, path)
    assert isinstance(error, DataError)
    assert message in str(error)
    assert str(path) in str(error)


def test_a_cut_parquet_file(tmp_path: Path) -> None:
    path = write_parquet(tmp_path, [GOOD] * 50)
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])
    assert "not a Parquet file, or damaged or cut off" in error_of(read_pairs, path).what
    with pytest.raises(DataError, match="damaged or cut off"):
        count_rows(source(path))


def test_a_missing_file_suggests_a_sibling(tmp_path: Path) -> None:
    write_jsonl(tmp_path, [GOOD])
    error = error_of(read_pairs, tmp_path / "dta.jsonl")
    assert error.fix == f"did you mean {tmp_path / 'data.jsonl'}?"
    assert error_of(read_pairs, tmp_path / "none" / "x.jsonl").what == "no such file or folder"


def test_a_file_has_no_split(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, [GOOD])
    assert len(read_pairs(source(path, split="train")).rows) == 1
    assert "a single file has no split" in error_of(read_pairs, path, split="test").what
    assert "a single file has no split" in error_of(read_pairs, path, revision="main").what


def test_csv_cells_that_look_like_json_stay_text(tmp_path: Path) -> None:
    rows = [{"prompt": "What?", "chosen": '["a", "b"]', "rejected": "[1]"}, GOOD]
    assert read_pairs(source(write_csv(tmp_path, rows))).rows[0]["chosen"][0]["content"] == '["a", "b"]'


@pytest.mark.parametrize(
    ("name", "local"),
    [
        ("HuggingFaceH4/ultrafeedback_binarized", False),
        ("squad", False),
        ("owner/name.v2", False),
        ("owner/name.json", True),
        ("data/train.PARQUET", True),
        ("./data", True),
        ("../data", True),
        ("~/data", True),
        ("/data", True),
        ("a/b/c", True),
        ("a b", True),
        ("nul\x00", True),
        ("x" * 5000, False),
    ],
)
def test_what_looks_local(name: str, local: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert (local_path(name) is not None) == local
    if local:
        monkeypatch.setattr(datasets, "load_dataset_builder", None)  # never asked
        assert error_of(read_pairs, name).what == "no such file or folder"


def test_an_existing_folder_is_never_looked_up_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_to_disk(tmp_path, [GOOD]).rename(tmp_path / "squad")
    monkeypatch.setattr(datasets, "load_dataset_builder", None)
    assert len(read_pairs(source("squad")).rows) == 1


def test_splits_of_a_saved_dict(tmp_path: Path) -> None:
    path = save_dict_to_disk(tmp_path, [GOOD, {**GOOD, "chosen": "This."}])
    assert len(read_pairs(source(path)).rows) == 2
    assert len(read_pairs(source(path, split="test_prefs")).rows) == 1
    error = error_of(read_pairs, path, split="train")
    assert str(error) == f"{path}: no split train; set split to one of: test_prefs, train_prefs"


@pytest.mark.parametrize(
    ("splits", "chosen"),
    [
        (["odd"], "odd"),
        (["train", "test"], "train"),
        (["train_sft", "train", "train_prefs"], "train_prefs"),
        (["test_sft", "train", "train_sft"], "train_sft"),
        (["a", "b"], None),
    ],
)
def test_the_default_split(splits: list[str], chosen: str | None, tmp_path: Path) -> None:
    data = {name: datasets.Dataset.from_list([{**GOOD, "prompt": name}]) for name in splits}
    datasets.DatasetDict(data).save_to_disk(str(tmp_path / "saved"))
    if chosen is None:
        assert error_of(read_pairs, tmp_path / "saved").fix == "set split to one of: a, b"
    else:
        assert read_pairs(source(tmp_path / "saved")).rows[0]["prompt"] == [user(chosen)]


def test_a_saved_dataset_has_no_other_split(tmp_path: Path) -> None:
    path = save_to_disk(tmp_path, [GOOD])
    assert "without split test" in error_of(read_pairs, path, split="test").what


def test_a_folder_without_data(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "not a dataset folder" in error_of(read_pairs, tmp_path / "empty").what


def test_a_damaged_saved_folder(tmp_path: Path) -> None:
    path = save_to_disk(tmp_path, [GOOD] * 100)
    for arrow in path.glob("*.arrow"):
        arrow.write_bytes(arrow.read_bytes()[:100])
    assert "or damaged" in error_of(read_pairs, path).what


def test_shuffled_and_formatted_saved_datasets(tmp_path: Path) -> None:
    rows = [{**GOOD, "prompt": f"q{i}"} for i in range(5)]
    data = datasets.Dataset.from_list(rows).select([3, 1]).with_format("numpy")
    data.save_to_disk(str(tmp_path / "saved"))
    assert [row["prompt"][0]["content"] for row in read_pairs(source(tmp_path / "saved")).rows] == ["q3", "q1"]
