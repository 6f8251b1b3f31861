"""Datasets that want to read what is not theirs, or to take memory or time."""

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spa_recipes.data import parquet
from spa_recipes.data.folders import foreign
from spa_recipes.data.places import content_fingerprint
from spa_recipes.data.sources import read_pairs
from spa_recipes.errors import DataError
from tests.kit.data import GOOD, error_of, source
from tests.kit.data_forms import hub_like_folder, save_dict_to_disk, save_to_disk, write_jsonl, write_parquet


def prompts(folder: Path, **settings: Any) -> list[str]:
    return [row["prompt"][0]["content"] for row in read_pairs(source(folder, **settings)).rows]


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file of the user's, outside of the dataset, that would do as data."""
    (tmp_path / "private").mkdir()
    return write_jsonl(tmp_path / "private", [{**GOOD, "prompt": "secret"}])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "dataset").mkdir()
    write_jsonl(tmp_path / "dataset", [{**GOOD, "prompt": "mine"}])
    return tmp_path / "dataset"


def readme(folder: Path, configs: Any) -> None:
    (folder / "README.md").write_text(f"---\n{json.dumps({'configs': configs})}\n---\n# A dataset\n")


# --- what is not in the folder


@pytest.mark.parametrize(
    "name",
    ["{secret}", "../private/data.jsonl", "x/../../private/*", "file://{secret}", "~/x.jsonl", "hf://datasets/o/n/*",
     "https://127.0.0.1:9/x.jsonl", "zip://*.jsonl::{secret}", "./{secret}"],
)  # fmt: skip
@pytest.mark.parametrize("form", ["text", "list", "splits", "dict"])
def test_a_readme_that_names_files_outside_of_the_folder(name: str, form: str, folder: Path, secret: Path) -> None:
    name = name.format(secret=secret)
    files = {"text": name, "list": ["data.jsonl", name], "splits": [{"split": "train", "path": name}]}
    readme(folder, [{"config_name": "default", "data_files": {**files, "dict": {"train": [name]}}[form]}])
    assert "which is not in this folder" in error_of(read_pairs, folder).what


def test_a_readme_whose_data_dir_leads_out(folder: Path, secret: Path) -> None:
    for place in ("../private", str(secret.parent)):
        readme(folder, [{"config_name": "default", "data_dir": place}])
        assert "which is not in this folder" in error_of(read_pairs, folder).what


def test_links_out_of_the_folder(folder: Path, secret: Path) -> None:
    (folder / "more.jsonl").symlink_to(secret)
    assert error_of(read_pairs, folder).what == "more.jsonl is a link out of the dataset folder"
    (folder / "more.jsonl").unlink()
    (folder / "train").symlink_to(secret.parent)
    assert prompts(folder) == ["mine"]


def test_a_snapshot_in_the_cache_of_the_hub_is_read_through_its_links(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "datasets--o--n" / "snapshots" / "abc", tmp_path / "datasets--o--n" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    write_jsonl(blobs, [GOOD]).rename(blobs / "1234")
    (snapshot / "train.jsonl").symlink_to("../../blobs/1234")
    assert len(prompts(snapshot)) == 1


def test_names_in_a_saved_dataset_that_lead_out(tmp_path: Path, secret: Path) -> None:
    saved = save_to_disk(tmp_path, [GOOD])
    state = json.loads((saved / "state.json").read_text())
    other = save_to_disk(tmp_path / "private", [{**GOOD, "prompt": "secret"}])
    (arrow,) = other.glob("*.arrow")
    for name in (str(arrow), f"../private/saved/{arrow.name}", "..", 7):
        (saved / "state.json").write_text(json.dumps({**state, "_data_files": [{"filename": name}]}))
        assert "is not the name of a file in this folder" in error_of(read_pairs, saved).what
    (saved / "state.json").write_text(json.dumps({**state, "_data_files": [{"filename": "x.arrow"}]}))
    (saved / "x.arrow").symlink_to(arrow)
    assert "is a link out of the dataset folder" in error_of(read_pairs, saved).what


def test_splits_of_a_saved_dataset_that_lead_out(tmp_path: Path) -> None:
    saved = save_dict_to_disk(tmp_path, [GOOD])
    (saved / "dataset_dict.json").write_text(json.dumps({"splits": ["train_prefs", "../private"]}))
    assert "is not the name of a file in this folder" in error_of(read_pairs, saved).what


def test_a_dataset_of_the_hub_that_names_files_of_others() -> None:
    own = ["hf://datasets/o/n@abc/x.parquet", "zip://a.jsonl::hf://datasets/o/n@abc/x.zip"]
    own += ["https://huggingface.co/datasets/o/n/resolve/abc/x.parquet"]
    assert foreign("o/n", {"train": own}) is None
    assert foreign("squad", {"train": ["hf://datasets/rajpurkar/squad@abc/x.parquet"]}) is None
    for other in ("/etc/passwd", "hf://datasets/o/other@abc/x", "hf://datasets/o/n2@abc/x", "https://host/x.jsonl",
                  "hf://datasets/me/private@abc/o/n@x"):  # fmt: skip
        assert "names a file that is not its own" in str(foreign("o/n", {"train": own, "test": [other]}))


# --- which files a folder has


def test_a_readme_chooses_files_and_configurations(folder: Path) -> None:
    (folder / "b").mkdir()
    write_jsonl(folder / "b", [{**GOOD, "prompt": "other"}])
    readme(folder, [{"config_name": "a", "data_files": "data.jsonl"}, {"config_name": "b", "data_files": "b/**"}])
    assert (prompts(folder, config_name="a"), prompts(folder, config_name="b")) == (["mine"], ["other"])
    assert error_of(read_pairs, folder).fix == "set config_name to one of: a, b"
    assert error_of(read_pairs, folder, config_name="c").fix == "set config_name to one of: a, b"
    readme(
        folder,
        [
            {
                "config_name": "a",
                "data_files": [{"split": "x", "path": "data.jsonl"}, {"split": "y", "path": ["b/*.jsonl"]}],
            }
        ],
    )
    assert prompts(folder, split="y") == ["other"]
    readme(folder, [{"config_name": "a", "default": True, "data_dir": "b"}, {"config_name": "c"}])
    assert prompts(folder) == ["other"]


def test_splits_are_told_from_names(tmp_path: Path) -> None:
    repo = hub_like_folder(tmp_path, [GOOD, {**GOOD, "prompt": "two"}, {**GOOD, "prompt": "three"}])
    assert (len(prompts(repo)), len(prompts(repo, split="test"))) == (3, 1)
    plain = tmp_path / "plain"
    for name in ("train", "dev"):
        (plain / name).mkdir(parents=True)
        write_jsonl(plain / name, [{**GOOD, "prompt": name}])
    (plain / "config.json").write_text("{}")
    assert (prompts(plain), prompts(plain, split="validation")) == (["train"], ["dev"])


def test_rows_of_several_files_are_numbered_through(folder: Path) -> None:
    (folder / "train").mkdir()
    (folder / "data.jsonl").unlink()
    for name in ("a", "b"):
        write_jsonl(folder / "train", [GOOD, {**GOOD, "prompt": name}]).rename(folder / "train" / f"{name}.jsonl")
    assert [row["row"] for row in read_pairs(source(folder)).rows] == [1, 2, 3, 4]


# --- size and time


def bomb(path: Path, rows: int = 64, size: int = 2**20) -> Path:
    text = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["x" * size]))
    short = pa.array([f"q{number}" for number in range(rows)])
    pq.write_table(pa.table({"prompt": short, "chosen": text, "rejected": short}), path, compression="zstd")
    return path


def list_bomb(path: Path) -> Path:
    """One row with a list of many long texts that are the same."""
    table = pa.table({"prompt": ["q"], "output": [["x" * 2**20] * 64]})
    pq.write_table(table, path, compression="zstd")
    return path


def null_bomb(path: Path) -> Path:
    pq.write_table(pa.table({"prompt": pa.array([[None] * 2**22], pa.list_(pa.string()))}), path, compression="zstd")
    return path


def change_bomb(path: Path) -> Path:
    """Every text is the one before it and a letter more."""
    table = pa.table({"prompt": ["x" * 2**16 + "y" * number for number in range(1000)]})
    pq.write_table(
        table, path, use_dictionary=False, column_encoding={"prompt": "DELTA_BYTE_ARRAY"}, compression="zstd"
    )
    return path


def page_bomb(path: Path) -> Path:
    pq.write_table(pa.table({"prompt": ["x" * 2**26]}), path, compression="zstd", use_dictionary=False)
    return path


def bytes_until_refused(path: Path) -> int:
    """The most memory that Arrow took before a Parquet file was refused as too large."""
    before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(pool)
    try:
        with pytest.raises(DataError, match=r"bytes of Parquet become more than \d+ MiB of rows"):
            list(parquet.parquet_rows(path))
    finally:
        pa.set_memory_pool(before)
    return int(pool.max_memory())


@pytest.mark.parametrize("make", [bomb, list_bomb, null_bomb, change_bomb, page_bomb])
def test_a_small_parquet_file_that_becomes_large(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "d.parquet")
    assert path.stat().st_size < 100_000
    monkeypatch.setattr(parquet, "ALWAYS_READ_BYTES", 2**20)
    assert bytes_until_refused(path) < 2**24
    assert "bytes of Parquet become more" in error_of(read_pairs, path).what
    (tmp_path / "folder").mkdir()
    path.rename(tmp_path / "folder" / "train.parquet")
    assert "bytes of Parquet become more" in error_of(read_pairs, tmp_path / "folder").what


def varint(number: int, length: int = 0) -> bytes:
    """A number of Thrift's compact protocol, of `length` bytes if that is more than it needs."""
    number *= 2
    digits: list[int] = []
    while number or len(digits) < max(length, 1):
        digits.append(number & 0x7F)
        number >>= 7
    return bytes([digit | 0x80 for digit in digits[:-1]] + digits[-1:])


def lie(path: Path, truth: int, said: int) -> None:
    """Put another number into the metadata of a Parquet file."""
    content = path.read_bytes()
    begin = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    footer, old = content[begin:], varint(truth)
    assert old in footer
    path.write_bytes(content[:begin] + footer.replace(old, varint(said, len(old))))


@pytest.mark.parametrize("options", [{"use_dictionary": False}, {}, {"data_page_version": "2.0"}])
def test_a_parquet_file_that_understates_its_size(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "d.parquet"
    texts = [f"{i:03d}" + "x" * 700_000 for i in range(40)]
    pq.write_table(pa.table({"prompt": texts}), path, compression="zstd", row_group_size=40, **options)
    column = pq.read_metadata(path).row_group(0).column(0)
    lie(path, column.total_uncompressed_size, 100)
    assert pq.read_metadata(path).row_group(0).column(0).total_uncompressed_size == 100
    monkeypatch.setattr(parquet, "ALWAYS_READ_BYTES", 2**20)
    assert bytes_until_refused(path) < 2**20


def test_a_parquet_file_that_says_another_number_of_rows(tmp_path: Path) -> None:
    path = write_parquet(tmp_path, [GOOD] * 1000)
    lie(path, 1000, 3_000)
    assert "rows" in error_of(read_pairs, path).what


@pytest.mark.parametrize("number", [3, 7, 40, 90])
def test_a_parquet_file_whose_pages_are_damaged(number: int, tmp_path: Path) -> None:
    path = write_parquet(tmp_path, [GOOD] * 1000)
    content = bytearray(path.read_bytes())
    content[4 : 4 + number] = b"\xff" * number
    path.write_bytes(content)
    assert "\n" not in str(error_of(read_pairs, path))


# --- Arrow


def write_stream(path: Path, table: pa.Table, compression: str | None) -> None:
    with pa.OSFile(str(path), "wb") as file:
        options = pa.ipc.IpcWriteOptions(compression=compression)
        with pa.ipc.new_stream(file, table.schema, options=options) as writer:
            writer.write_table(table)


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_compressed_buffers_in_a_saved_dataset(compression: str, tmp_path: Path) -> None:
    saved = save_to_disk(tmp_path, [GOOD])
    (path,) = saved.glob("*.arrow")
    with pa.memory_map(str(path)) as file:
        table = pa.ipc.open_stream(file).read_all()
    write_stream(tmp_path / "plain", table, None)
    (tmp_path / "plain").replace(path)
    assert len(prompts(saved)) == 1
    bomb = pa.table({name: ["x" * 2**20] * 64 for name in table.column_names})
    write_stream(path, bomb, compression)
    before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(pool)
    try:
        error = error_of(read_pairs, saved)
    finally:
        pa.set_memory_pool(before)
    assert error.what == f"{path.name} has compressed buffers, which save_to_disk does not write"
    assert pool.max_memory() < 2**22


def test_a_saved_dataset_of_a_million_rows_of_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = save_to_disk(tmp_path, [GOOD])
    (path,) = saved.glob("*.arrow")
    info = json.loads((saved / "dataset_info.json").read_text())
    info["features"] = {"prompt": {"dtype": "null", "_type": "Value"}}
    (saved / "dataset_info.json").write_text(json.dumps(info))
    write_stream(path, pa.table({"prompt": pa.nulls(1_000_000)}), None)
    monkeypatch.setattr(parquet, "ALWAYS_READ_BYTES", 2**20)
    assert "bytes become more than 1 MiB of rows" in error_of(read_pairs, saved, on_bad_row="skip").what


def test_a_saved_dataset_whose_offsets_are_false(tmp_path: Path) -> None:
    saved = save_to_disk(tmp_path, [GOOD] * 3)
    (path,) = saved.glob("*.arrow")
    with pa.memory_map(str(path)) as file:
        schema = pa.ipc.open_stream(file).schema
    offsets = pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 3, 2**30, 9)))
    false = pa.StringArray.from_buffers(3, offsets, pa.py_buffer(b"x" * 9))
    write_stream(path, pa.table(dict.fromkeys(schema.names, false)), None)
    assert "damaged after row 0" in error_of(read_pairs, saved).what


@pytest.mark.parametrize(
    "encoding", [{}, {"use_dictionary": False}, {"row_group_size": 3}, {"data_page_version": "2.0"}]
)
def test_parquet_of_the_usual_size_is_read_as_it_is(encoding: dict[str, Any], tmp_path: Path) -> None:
    message = pa.struct([("role", pa.string()), ("content", pa.large_string())])
    schema = pa.schema([("prompt", pa.string()), ("chosen", pa.list_(message)), ("score", pa.float32()),
                        ("ids", pa.map_(pa.string(), pa.int32())),
                        ("raw", pa.binary()), ("none", pa.null())])  # fmt: skip
    rows = [
        {"prompt": None if i == 2 else f"q{i}", "chosen": [{"role": "user", "content": str(i)}] * (i % 3), "score": 0.5,
         "ids": [("a", i)], "raw": bytes(3), "none": None}
        for i in range(10)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / "d.parquet", **encoding)
    assert list(parquet.parquet_rows(tmp_path / "d.parquet")) == rows


def test_a_pipe_or_a_device_in_the_place_of_a_dataset(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "d.jsonl")
    for path in (tmp_path / "d.jsonl", Path("/dev/zero")):
        assert "a pipe or a device" in error_of(read_pairs, path).what
        with pytest.raises(DataError, match="a pipe or a device"):
            content_fingerprint(source(path), lambda path: "")


def test_a_pipe_in_a_dataset_folder_is_no_data(folder: Path) -> None:
    os.mkfifo(folder / "more.jsonl")
    os.mkfifo(folder / "README.md")
    assert prompts(folder) == ["mine"]


@pytest.mark.parametrize("text", ["[" * 100_000, "- " * 100_000, "a: *b", "!!python/object:x {}", "x" * 2**21])
def test_a_readme_whose_head_is_damaged_or_too_deep(folder: Path, text: str) -> None:
    (folder / "README.md").write_text(f"---\n{text}\n---\n")
    assert "its head cannot be read" in error_of(read_pairs, folder).what


@pytest.mark.parametrize("pattern", ["**/" * 100 + "*", "**.jsonl", "", "x" * 1000, None, 7])
def test_patterns_that_cannot_be_used(folder: Path, pattern: Any) -> None:
    readme(folder, [{"config_name": "default", "data_files": [pattern]}])
    assert isinstance(error_of(read_pairs, folder), DataError)


def test_json_that_is_nested_without_end_in_a_saved_dataset(tmp_path: Path) -> None:
    saved = save_to_disk(tmp_path, [GOOD])
    (saved / "state.json").write_text("[" * 100_000)
    assert "or damaged (nested too deep)" in error_of(read_pairs, saved).what


def test_a_folder_of_parquet_is_read(tmp_path: Path) -> None:
    write_parquet(tmp_path, [GOOD] * 3)
    assert len(prompts(tmp_path)) == 3
