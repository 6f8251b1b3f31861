"""What the Hub raises, and what it is asked for."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest

from spa_recipes.data.sources import read_pairs
from spa_recipes.errors import DataError, SpaError, TryAgainError
from tests.kit.data import error_of, source
from tests.kit.data_forms import canonical, ultrafeedback, user


class Response:
    def __init__(self, status_code: int) -> None:
        self.status_code = status_code


class FakeHttpError(Exception):
    def __init__(self, status_code: int) -> None:
        super().__init__(f"{status_code} error\nwith more lines")
        self.response = Response(status_code)


HUB_ERRORS = [
    (datasets.exceptions.DatasetNotFoundError("Dataset 'o/n' doesn't exist"), DataError, "no such dataset"),
    (
        datasets.exceptions.DatasetNotFoundError("Dataset 'o/n' is a gated dataset on the Hub. Visit ..."),
        DataError,
        "the dataset is gated on the Hub; ask for access at https://huggingface.co/datasets/o/n and set HF_TOKEN",
    ),
    (ConnectionError("Couldn't reach 'o/n' on the Hub"), TryAgainError, "the Hub cannot be reached"),
    (TimeoutError("slow"), TryAgainError, "the Hub cannot be reached (slow)"),
    (FakeHttpError(503), TryAgainError, "the Hub cannot be reached (503 error)"),
    (FakeHttpError(404), DataError, "no such dataset"),
    (
        ValueError("BuilderConfig 'x' not found. Available: ['en', 'fr']"),
        DataError,
        "there are several configurations; set config_name to one of: 'en', 'fr'",
    ),
    (RuntimeError("odd\nthing"), DataError, "the dataset cannot be loaded (odd)"),
    (Exception(), DataError, "the dataset cannot be loaded (Exception)"),
]


@pytest.mark.parametrize(("raised", "kind", "message"), HUB_ERRORS, ids=lambda value: getattr(value, "__name__", None))
def test_what_the_hub_raises(
    raised: Exception, kind: type[SpaError], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_dataset_builder(*_: Any, **__: Any) -> None:
        raise raised

    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(datasets, "load_dataset_builder", load_dataset_builder)
    error = error_of(read_pairs, "o/n")
    assert type(error) is kind
    assert message in str(error)


def test_a_hub_dataset_is_asked_for_as_the_source_says(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Builder:
        config = SimpleNamespace(data_files={"train": ["hf://datasets/o/n@r/data/train.parquet"]})

        def download_and_prepare(self) -> None:
            asked.append("prepare")

        def as_dataset(self) -> Any:
            return datasets.DatasetDict({"train": datasets.Dataset.from_list([ultrafeedback([user("q")], "a", "b")])})

    def load_dataset_builder(path: str, **settings: Any) -> Any:
        asked.append((path, settings))
        return Builder()

    monkeypatch.setattr(datasets, "load_dataset_builder", load_dataset_builder)
    loaded = read_pairs(source("o/n", config_name="c", revision="r"))
    assert loaded.rows == [canonical([user("q")], "a", "b", row=1)]
    assert asked == [("o/n", {"name": "c", "revision": "r"}), "prepare"]


CSV = {
    "words such as NA": "prompt,chosen,rejected,id\nq1,NA,null,a\nq2,None,nan,b\nq3,a,,c\n",
    "numbers": "prompt,chosen,rejected,id\nq1,1,02,007\nq2,1e5,True,1e5\nq3,3.10,,12345678901234567890\n",
    "semicolons": 'prompt;chosen;rejected;"id"\nq1;a,b;c;007\nq2;1;2;\nq3;a;;1\n',
    "a mark in front": "\ufeffprompt,chosen,rejected,id\nq1,1,2,01\nq2,3,4,02\nq3,5,,03\n",
}


@pytest.mark.parametrize("content", CSV.values(), ids=CSV)
def test_a_csv_of_the_hub_holds_the_texts_of_the_same_file(
    content: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "d.csv").write_text(content)
    load = datasets.load_dataset_builder

    def load_dataset_builder(path: str, name: Any, revision: Any, **settings: Any) -> Any:
        assert path == "o/n"
        files = {"train": str(tmp_path / "d.csv")}
        return load("csv", data_files=files, cache_dir=str(tmp_path / "cache"), **settings)

    monkeypatch.setattr(datasets, "load_dataset_builder", load_dataset_builder)
    monkeypatch.setattr("spa_recipes.data.raw.foreign", lambda name, files: None)
    ours = read_pairs(source(tmp_path / "d.csv", on_bad_row="skip"))
    theirs = read_pairs(source("o/n", on_bad_row="skip"))
    assert len(theirs.rows) == 2
    assert theirs.rows == ours.rows
    assert theirs.skipped == ours.skipped == [(3, "the rejected response is empty")]
