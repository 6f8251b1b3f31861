"""Where data comes from, what is refused and how it is said."""

import json
import os
from pathlib import Path
from typing import Any

import datasets
import pytest

from spa_recipes.data.files import local_path
from spa_recipes.data.rows import Message
from spa_recipes.data.sources import (
    content_fingerprint,
    count_rows,
    read_candidates,
    read_conversations,
    read_pairs,
    read_prompts,
)
from spa_recipes.errors import DataError, SpaError, TryAgainError
from spa_recipes.recipe.schema import Columns, DatasetSource, SandboxSource
from spa_recipes.state.digests import DigestMemo
from tests.kit.data_forms import (
    FILES,
    assistant,
    canonical,
    save_dict_to_disk,
    save_to_disk,
    system,
    trl_strings,
    ultrafeedback,
    user,
    write_csv,
    write_json,
    write_jsonl,
    write_parquet,
)

GOOD = {"prompt": "What?", "chosen": "That.", "rejected": "No."}
CONVERSATION = [user("What?"), assistant("That.")]


def source(path: Path | str, **settings: Any) -> DatasetSource:
    return DatasetSource(source=str(path), **settings)


def error_of(read: Any, path: Path | str, **settings: Any) -> SpaError:
    with pytest.raises(SpaError) as caught:
        read(source(path, **settings))
    assert "\n" not in str(caught.value)
    return caught.value


def whole(prompt: Any = None, chosen: Any = None, rejected: Any = None) -> dict[str, Any]:
    """A row of UltraFeedback's form."""
    return {
        "prompt": "What?" if prompt is None else prompt,
        "chosen": [user("What?"), assistant("That.")] if chosen is None else chosen,
        "rejected": [user("What?"), assistant("No.")] if rejected is None else rejected,
    }


# --- malformed rows

BAD_ROWS = {
    "missing column": (GOOD, {"prompt": "What?", "chosen": "That."}, "no column `rejected`"),
    "null": (GOOD, {**GOOD, "rejected": None}, "`rejected` is null"),
    "null prompt": (whole(), {**whole(), "prompt": None}, "`prompt` is null"),
    "empty prompt": (GOOD, {**GOOD, "prompt": " \n"}, "message 1 of the prompt is empty"),
    "empty response": (GOOD, {**GOOD, "chosen": ""}, "the chosen response is empty"),
    "equal": (GOOD, {**GOOD, "rejected": "That."}, "the chosen response equals the rejected one"),
    "number": (GOOD, {**GOOD, "chosen": 3}, "`chosen` is neither text nor messages, where a string is expected"),
    "half a character": (GOOD, {**GOOD, "chosen": "a\ud83d"}, "the chosen response holds half a surrogate pair"),
    "another form": (GOOD, whole(), "`chosen` is a list of messages, where a string is expected (TRL explicit"),
    "one more column": (
        {k: v for k, v in whole().items() if k != "prompt"},
        whole(),
        "`prompt` is set, but the first rows have none",
    ),
    "no assistant": (whole(), whole(chosen=[user("What?")]), "`chosen` ends with a message of user, not of assistant"),
    "unknown role": (
        whole(),
        whole(chosen=[{"role": "tool", "content": "x"}, assistant("y")]),
        "message 1 of `chosen` is of 'tool', not of system, user (human) or assistant (gpt)",
    ),
    "null content": (
        whole(),
        whole(chosen=[user("What?"), {"role": "assistant", "content": None}]),
        "no text but null",
    ),
    "parts as content": (
        whole(),
        whole(chosen=[user("What?"), {"role": "assistant", "content": [{"type": "text", "text": "x"}]}]),
        "message 2 of `chosen` has no text but a list",
    ),
    "not messages": (whole(), whole(chosen=[user("What?"), "That."]), "message 2 of `chosen` is not an object"),
    "no messages": (whole(), whole(chosen=[]), "`chosen` is an empty list, where a list of messages is expected"),
    "disagreeing prompt": (whole(), whole(prompt="Who?"), "`prompt` is not what the user says"),
    "different prefixes": (
        whole(),
        whole(rejected=[user("Who?"), assistant("No.")]),
        "`chosen` and `rejected` differ before their last message (at message 1)",
    ),
    "longer prefix": (
        whole(),
        whole(rejected=[user("What?"), assistant("No."), user("Sure?"), assistant("Yes.")]),
        "`chosen` and `rejected` differ before their last message (in length)",
    ),
    "late system": (
        whole(),
        whole(
            chosen=[user("What?"), system("Hm"), user("?"), assistant("That.")],
            rejected=[user("What?"), system("Hm"), user("?"), assistant("No.")],
        ),
        "message 2 of the prompt is of system, which may only come first",
    ),
    "answer after answer": (
        whole(),
        whole(
            chosen=[user("What?"), assistant("a"), assistant("b")],
            rejected=[user("What?"), assistant("a"), assistant("c")],
        ),
        "the prompt ends with a message of assistant, not of user",
    ),
    "three outputs": (
        {"instruction": "What?", "output": ["a", "b"]},
        {"instruction": "What?", "output": ["a", "b", "c"]},
        "`output` holds 3 responses, not 2",
    ),
    "bad history": (
        {"instruction": "What?", "output": ["a", "b"]},
        {"instruction": "What?", "output": ["a", "b"], "history": [["a"]]},
        "item 1 of `history` is not a list of an instruction and a response",
    ),
    "two systems": (
        {"conversations": [{"from": "human", "value": "x"}], "chosen": "a", "rejected": "b"},
        {
            "conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "x"}],
            "chosen": "a",
            "rejected": "b",
            "system": "t",
        },
        "there are two system messages",
    ),
    "two completions": (
        {"prompt": [user("What?")], "chosen": [assistant("a")], "rejected": [assistant("b")]},
        {"prompt": [user("What?")], "chosen": [assistant("a"), assistant("c")], "rejected": [assistant("b")]},
        "`chosen` holds 2 messages, where one of assistant is expected",
    ),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_malformed_row_is_named_or_skipped(case: str, tmp_path: Path) -> None:
    good, bad, message = BAD_ROWS[case]
    path = tmp_path / "data.json"
    path.write_text(json.dumps([good, bad, good]))
    error = error_of(read_pairs, path)
    assert isinstance(error, DataError)
    assert str(error).startswith(f"{path}, row 2: ")
    assert message in error.what
    assert "on_bad_row: skip" in error.fix

    loaded = read_pairs(source(path, on_bad_row="skip"))
    assert [row["row"] for row in loaded.rows] == [1, 3]
    assert loaded.skipped == [(2, error.what)]


def test_lines_that_are_not_json_are_skipped_too(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, [GOOD, GOOD])
    path.write_bytes(path.read_bytes() + b'{"prompt": "\xff"}\n\n[]\n{"prompt": "x", "cho')
    assert str(error_of(read_pairs, path)).startswith(f"{path}:3: not UTF-8 at byte ")
    loaded = read_pairs(source(path, on_bad_row="skip"))
    assert [row["row"] for row in loaded.rows] == [1, 2]
    assert [number for number, _ in loaded.skipped] == [3, 5, 6]
    assert "cut off" in loaded.skipped[2][1]


def test_a_bad_first_row_does_not_hide_the_form(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, [{"prompt": None, "chosen": [], "rejected": []}, whole(), GOOD, whole()])
    assert str(error_of(read_pairs, path)).startswith(f"{path}:1: `prompt` is null")
    loaded = read_pairs(source(path, on_bad_row="skip"))
    assert [row["row"] for row in loaded.rows] == [2, 4]


def test_nothing_usable_is_an_error_even_when_skipping(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, [{**GOOD, "chosen": ""}] * 3)
    error = error_of(read_pairs, path, on_bad_row="skip")
    assert error.what == "none of the 3 rows is usable; row 1: the chosen response is empty"


# --- unknown forms and columns


def test_an_unknown_form_lists_what_is_there_and_what_is_accepted(tmp_path: Path) -> None:
    error = error_of(read_pairs, write_jsonl(tmp_path, [{"question": "x", "best": "y", "n": 1}]))
    assert "question (a string), best (a string), n (neither text nor messages)" in error.what
    assert "prompt, chosen, rejected (strings or message lists)" in error.fix
    assert "or name the columns with `columns`" in error.fix
    # A transcript in one string (HH-RLHF) is no whole conversation.
    error_of(read_pairs, write_jsonl(tmp_path, [{"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: a"}]))


def test_columns_override_the_detection(tmp_path: Path) -> None:
    row = {"question": "What?", "best": "That.", "worst": "No.", "prompt": [user("not this")], "chosen": 1}
    path = write_jsonl(tmp_path, [row])
    columns = Columns(prompt="question", chosen="best", rejected="worst")
    loaded = read_pairs(source(path, columns=columns))
    assert loaded.rows == [canonical([user("What?")], "That.", "No.", row=1)]
    assert loaded.columns == ["question", "best", "worst"]
    error = error_of(read_pairs, path, columns=Columns(prompt="questoin"))
    assert "no column `questoin`, which `columns.prompt` names; found: question (a string), best" in error.what


def test_an_override_of_one_column(tmp_path: Path) -> None:
    row = {"instruction": "not this", "text": "What?", "chosen": "That.", "rejected": "No."}
    loaded = read_pairs(source(write_jsonl(tmp_path, [row]), columns=Columns(prompt="text")))
    assert loaded.rows == [canonical([user("What?")], "That.", "No.", row=1)]


# --- prompts, conversations, candidates

PROMPTS: dict[str, tuple[dict[str, Any], list[Message], str]] = {
    "strings": ({"prompt": "What?"}, [user("What?")], "prompt strings"),
    "lists": ({"prompt": [system("s"), user("What?")]}, [system("s"), user("What?")], "prompt message lists"),
    "messages": ({"messages": [user("What?")]}, [user("What?")], "conversations"),
    "answered": ({"messages": CONVERSATION}, [user("What?")], "conversations"),
    "ultrachat": ({"prompt": "What?", "prompt_id": "x", "messages": CONVERSATION}, [user("What?")], "prompt strings"),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "That."}]},
        [user("What?")],
        "ShareGPT conversations",
    ),
    "pairs with a system message": (
        whole(
            chosen=[system("s"), user("What?"), assistant("a")], rejected=[system("s"), user("What?"), assistant("b")]
        ),
        [system("s"), user("What?")],
        "prompts of string prompt and whole conversations, as UltraFeedback",
    ),
    "pairs with equal responses": (
        trl_strings([user("What?")], "a", "a"),
        [user("What?")],
        "prompts of TRL explicit, strings",
    ),
}


@pytest.mark.parametrize("case", PROMPTS)
def test_prompts(case: str, tmp_path: Path) -> None:
    row, prompt, form = PROMPTS[case]
    loaded = read_prompts(source(write_jsonl(tmp_path, [row])))
    assert [item["prompt"] for item in loaded.rows] == [prompt]
    assert (loaded.form, loaded.rows[0]["row"]) == (form, 1)


CONVERSATIONS: dict[str, dict[str, Any]] = {
    "messages": {"messages": CONVERSATION},
    "ultrachat": {"prompt": "What?", "prompt_id": "x", "messages": CONVERSATION},
    "strings": {"prompt": "What?", "completion": "That."},
    "lists": {"prompt": [user("What?")], "completion": [assistant("That.")]},
    "sharegpt": {"conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "That."}]},
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("case", CONVERSATIONS)
def test_conversations(case: str, kind: str, tmp_path: Path) -> None:
    loaded = read_conversations(source(FILES[kind](tmp_path, [CONVERSATIONS[case]])))
    assert loaded.rows == [{"messages": CONVERSATION, "row": 1}]


def test_conversations_of_named_columns(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, [{"q": "What?", "a": "That.", "talk": CONVERSATION, "messages": [user("not this")]}])
    by_pair = read_conversations(source(path, columns=Columns(prompt="q", chosen="a")))
    by_list = read_conversations(source(path, columns=Columns(prompt="talk")))
    assert by_pair.rows == by_list.rows == [{"messages": CONVERSATION, "row": 1}]
    assert (by_pair.columns, by_list.columns) == (["q", "a"], ["talk"])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [user("What?")]}, "the conversation ends with a message of user"),
        ({"messages": [assistant("That.")]}, "there is no prompt before the answer"),
        ({"messages": [user("What?"), assistant("")]}, "the last answer is empty"),
        ({"messages": []}, "`messages` is an empty list"),
    ],
)
def test_malformed_conversations(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, [{"messages": CONVERSATION}, row])
    assert message in error_of(read_conversations, path).what


def test_candidates(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "What?", "responses": ["a", "b", "c"]},
        {"prompt": [user("What?")], "responses": [assistant("a"), assistant("a")]},
    ]
    loaded = read_candidates(write_jsonl(tmp_path, rows))
    assert [row["responses"] for row in loaded.rows] == [["a", "b", "c"], ["a", "a"]]
    assert [row["label"] for row in loaded.rows] == [None, None]
    path = write_jsonl(tmp_path, [rows[0], {"prompt": "What?", "responses": ["a"]}])
    assert "1 response, where at least 2 are needed" in error_of(read_candidates, path).what


@pytest.mark.parametrize(
    ("column", "values", "labels"),
    [
        ("label", ["a", "B", "tie"], [0, 1, None]),
        ("preference", ["response_a", "response_b", None], [0, 1, None]),
        ("label", [0, 1, 1], [0, 1, 1]),
        ("preference", [1.0, 2.0, 1.5], [0, 1, None]),
        ("label", ["1", "2", "2"], [0, 1, 1]),
        ("label", [1, 1, 1], [None, None, None]),  # counted from 0 or from 1?
        ("label", [0, 1, 2], [None, None, None]),
        ("label", [True, False, {}], [None, None, None]),
        ("other", [0, 1, 0], [None, None, None]),
    ],
)
def test_labels_of_two_responses(column: str, values: list[Any], labels: list[Any], tmp_path: Path) -> None:
    rows = [{"prompt": "What?", "response_a": "a", "response_b": "b", column: value} for value in values]
    assert [row["label"] for row in read_candidates(write_jsonl(tmp_path, rows)).rows] == labels


# --- files


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
        monkeypatch.setattr(datasets, "load_dataset", None)  # never asked
        assert error_of(read_pairs, name).what == "no such file or folder"


def test_an_existing_folder_is_never_looked_up_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_to_disk(tmp_path, [GOOD]).rename(tmp_path / "squad")
    monkeypatch.setattr(datasets, "load_dataset", None)
    assert len(read_pairs(source("squad")).rows) == 1


# --- splits of folders


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


# --- the Hub


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
    def load_dataset(*_: Any, **__: Any) -> None:
        raise raised

    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    error = error_of(read_pairs, "o/n")
    assert type(error) is kind
    assert message in str(error)


def test_a_hub_dataset_is_asked_for_as_the_source_says(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(path: str, **settings: Any) -> Any:
        asked.append((path, settings))
        return datasets.DatasetDict({"train": datasets.Dataset.from_list([ultrafeedback([user("q")], "a", "b")])})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    loaded = read_pairs(source("o/n", config_name="c", revision="r"))
    assert loaded.rows == [canonical([user("q")], "a", "b", row=1)]
    assert asked == [("o/n", {"name": "c", "revision": "r"})]


# --- the sandbox


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


# --- counts and fingerprints


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
