"""Every accepted form of labelled pairs, in every kind of file."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spa_recipes.data.rows import Message, PairRow, prompt_id
from spa_recipes.data.sources import Loaded, read_candidates, read_pairs, read_prompts
from spa_recipes.recipe.schema import DatasetSource

Raw = dict[str, Any]


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def system(text: str) -> Message:
    return {"role": "system", "content": text}


def canonical(prompt: list[Message], chosen: str, rejected: str, row: int) -> PairRow:
    return {
        "prompt_id": prompt_id(prompt),
        "prompt": prompt,
        "chosen": [assistant(chosen)],
        "rejected": [assistant(rejected)],
        "row": row,
    }


# --- from (prompt messages, chosen, rejected) to a raw row of a form


def trl_strings(prompt: list[Message], chosen: str, rejected: str) -> Raw:
    return {"prompt": prompt[-1]["content"], "chosen": chosen, "rejected": rejected}


def trl_messages(prompt: list[Message], chosen: str, rejected: str) -> Raw:
    return {"prompt": prompt, "chosen": [assistant(chosen)], "rejected": [assistant(rejected)]}


def trl_implicit(prompt: list[Message], chosen: str, rejected: str) -> Raw:
    return {"chosen": [*prompt, assistant(chosen)], "rejected": [*prompt, assistant(rejected)]}


def ultrafeedback(prompt: list[Message], chosen: str, rejected: str) -> Raw:
    first = next(message["content"] for message in prompt if message["role"] == "user")
    return {"prompt": first, **trl_implicit(prompt, chosen, rejected), "source": "evol"}


def messages_and_strings(prompt: list[Message], chosen: str, rejected: str) -> Raw:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _alpaca(prompt: list[Message]) -> Raw:
    head = prompt[0]["content"] if prompt[0]["role"] == "system" else ""
    turns = [message["content"] for message in prompt if message["role"] != "system"]
    history = [list(turn) for turn in zip(turns[:-1:2], turns[1::2], strict=True)]
    return {"instruction": turns[-1], "input": "", "system": head, "history": history}


def alpaca(prompt: list[Message], chosen: str, rejected: str) -> Raw:
    return {**_alpaca(prompt), "chosen": chosen, "rejected": rejected}


def alpaca_outputs(prompt: list[Message], chosen: str, rejected: str) -> Raw:
    return {**_alpaca(prompt), "output": [chosen, rejected]}


SHAREGPT = {"user": "human", "assistant": "gpt", "system": "system"}


def sharegpt_messages(messages: list[Message]) -> list[Raw]:
    return [{"from": SHAREGPT[message["role"]], "value": message["content"]} for message in messages]


def sharegpt(prompt: list[Message], chosen: str, rejected: str) -> Raw:
    return {
        "conversations": sharegpt_messages(prompt),
        "chosen": {"from": "gpt", "value": chosen},
        "rejected": {"from": "gpt", "value": rejected},
    }


ToForm = Callable[[list[Message], str, str], Raw]
# Name of the detected form, how to make a row of it, and whether it holds one user turn only.
FORMS: dict[str, tuple[str, ToForm, bool]] = {
    "trl_strings": ("TRL explicit, strings", trl_strings, True),
    "trl_messages": ("TRL explicit, message lists", trl_messages, False),
    "trl_implicit": ("TRL implicit, whole conversations", trl_implicit, False),
    "ultrafeedback": ("string prompt and whole conversations, as UltraFeedback", ultrafeedback, False),
    "messages_and_strings": ("message-list prompt and string responses", messages_and_strings, False),
    "alpaca": ("Alpaca pairs", alpaca, False),
    "alpaca_outputs": ("Alpaca pairs, output list", alpaca_outputs, False),
    "sharegpt": ("ShareGPT pairs", sharegpt, False),
}


# --- from raw rows to files


def write_jsonl(folder: Path, rows: Sequence[Raw]) -> Path:
    path = folder / "data.jsonl"
    path.write_bytes(b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows))
    return path


def write_ascii_jsonl(folder: Path, rows: Sequence[Raw]) -> Path:
    path = folder / "data.ndjson"
    path.write_bytes(b"\xef\xbb\xbf" + b"".join(json.dumps(row).encode() + b"\r\n" for row in rows))
    return path


def write_json(folder: Path, rows: Sequence[Raw]) -> Path:
    path = folder / "data.json"
    path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return path


def write_json_lines(folder: Path, rows: Sequence[Raw]) -> Path:
    return write_jsonl(folder, rows).rename(folder / "lines.json")


def write_parquet(folder: Path, rows: Sequence[Raw]) -> Path:
    path = folder / "data.parquet"
    pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=2)
    return path


def write_csv(folder: Path, rows: Sequence[Raw]) -> Path:
    """Lists go into cells as JSON."""
    path = folder / "data.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(rows[0])
        for row in rows:
            writer.writerow([cell if isinstance(cell, str) else json.dumps(cell) for cell in row.values()])
    return path


def save_to_disk(folder: Path, rows: Sequence[Raw]) -> Path:
    datasets.Dataset.from_list(list(rows)).save_to_disk(str(folder / "saved"))
    return folder / "saved"


def save_dict_to_disk(folder: Path, rows: Sequence[Raw]) -> Path:
    train = datasets.Dataset.from_list(list(rows))
    datasets.DatasetDict({"test_prefs": train.select([0]), "train_prefs": train}).save_to_disk(str(folder / "saved"))
    return folder / "saved"


def hub_like_folder(folder: Path, rows: Sequence[Raw]) -> Path:
    """As a repository of the Hub: data/SPLIT-00000-of-00001.parquet."""
    repo = folder / "repo"
    (repo / "data").mkdir(parents=True)
    write_parquet(folder, rows).rename(repo / "data" / "train-00000-of-00001.parquet")
    write_parquet(folder, rows[:1]).rename(repo / "data" / "test-00000-of-00001.parquet")
    return repo


Write = Callable[[Path, Sequence[Raw]], Path]
FILES: dict[str, Write] = {
    "jsonl": write_jsonl,
    "ascii_jsonl": write_ascii_jsonl,
    "json": write_json,
    "json_lines": write_json_lines,
    "parquet": write_parquet,
    "csv": write_csv,
}
FOLDERS: dict[str, Write] = {
    "save_to_disk": save_to_disk,
    "save_dict_to_disk": save_dict_to_disk,
    "hub_like": hub_like_folder,
}


# --- tests

ONE_TURN = [
    ([user("What is 2 + 2?")], "4", "5"),
    ([user('Say "hi",\nthen\u2028leave')], "hi, \r\n bye", " no "),
    ([user("naïve 猫 🦊")], '{"role": "user"}', "[1, 2]"),
]
CONVERSATIONS = [
    ([system("Be brief."), user("Hi"), assistant("Hello!"), user("What is 2 + 2?")], "4", "5"),
    ([system("Be brief."), user("Hi"), assistant("Hello!"), user("And 3 + 3?")], "6", "5"),
    ([user("naïve 猫 🦊")], "oui", "non"),
]


def pairs_of(path: Path) -> Loaded[PairRow]:
    return read_pairs(DatasetSource(source=str(path)))


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("form", FORMS)
def test_a_form_in_a_file(form: str, kind: str, tmp_path: Path) -> None:
    name, make, one_turn = FORMS[form]
    items = ONE_TURN if one_turn else CONVERSATIONS
    raw = [make(*item) for item in items]
    path = FILES[kind](tmp_path, raw)
    loaded = pairs_of(path)
    assert loaded.rows == [canonical(*item, row=number) for number, item in enumerate(items, start=1)]
    assert loaded.form == name
    assert loaded.skipped == []
    assert set(loaded.columns) == {key for row in raw for key, cell in row.items() if cell} - {"source"}

    prompts = read_prompts(DatasetSource(source=str(path)))
    assert [row["prompt"] for row in prompts.rows] == [item[0] for item in items]
    candidates = read_candidates(path)
    assert [row["responses"] for row in candidates.rows] == [[item[1], item[2]] for item in items]
    assert {row["label"] for row in candidates.rows} == {0}


@pytest.mark.parametrize("kind", FOLDERS)
@pytest.mark.parametrize("form", ["trl_strings", "ultrafeedback", "alpaca_outputs", "sharegpt"])
def test_a_form_in_a_folder(form: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    name, make, one_turn = FORMS[form]
    items = ONE_TURN if one_turn else CONVERSATIONS
    loaded = pairs_of(FOLDERS[kind](tmp_path, [make(*item) for item in items]))
    assert loaded.rows == [canonical(*item, row=number) for number, item in enumerate(items, start=1)]
    assert loaded.form == name


def test_messages_as_a_struct_of_lists(tmp_path: Path) -> None:
    # Datasets of older versions of the library keep lists of messages so.
    def struct(messages: list[Message]) -> Raw:
        return {key: [message[key] for message in messages] for key in ("role", "content")}  # type: ignore[literal-required]

    rows = [{key: struct(value) for key, value in trl_implicit(*item).items()} for item in CONVERSATIONS]
    assert pairs_of(write_parquet(tmp_path, rows)).rows[0] == canonical(*CONVERSATIONS[0], row=1)


def test_alpaca_joins_the_input(tmp_path: Path) -> None:
    rows = [{"instruction": "Translate", "input": "chat", "chosen": "cat", "rejected": "dog"}]
    rows.append({"instruction": "Say hi", "input": "", "chosen": "hi", "rejected": "no"})
    loaded = pairs_of(write_jsonl(tmp_path, rows))
    assert [row["prompt"] for row in loaded.rows] == [[user("Translate\nchat")], [user("Say hi")]]
    assert loaded.columns == ["instruction", "chosen", "rejected", "input"]


@pytest.mark.parametrize("response", ["gpt", "list", "string"])
def test_sharegpt_responses_in_three_notations(response: str, tmp_path: Path) -> None:
    prompt, chosen, rejected = CONVERSATIONS[0]
    row = sharegpt(prompt[1:], chosen, rejected)
    if response == "list":
        row = {**row, "chosen": [row["chosen"]], "rejected": [row["rejected"]]}
    if response == "string":
        row = {**row, "chosen": chosen, "rejected": rejected}
    row["system"] = "Be brief."
    assert pairs_of(write_jsonl(tmp_path, [row])).rows == [canonical(*CONVERSATIONS[0], row=1)]


def test_a_completion_may_repeat_its_prompt(tmp_path: Path) -> None:
    row = {"prompt": CONVERSATIONS[0][0], **trl_implicit(*CONVERSATIONS[0])}
    assert pairs_of(write_jsonl(tmp_path, [row])).rows == [canonical(*CONVERSATIONS[0], row=1)]


def test_scores_are_kept(tmp_path: Path) -> None:
    head = trl_strings(*ONE_TURN[0])
    rows = [
        {**head, "score_chosen": 8.5, "score_rejected": 2, "gold_chosen": 0.1, "gold_rejected": -1.0},
        {**head, "chosen-rating": 5, "rejected-rating": None},
        {**head, "chosen_score": "7.5", "rejected_score": "n/a"},
        {**head, "score_chosen": float("nan"), "score_rejected": True},
    ]
    kept = [
        {key: value for key, value in row.items() if key.startswith(("score", "gold"))}
        for row in pairs_of(write_jsonl(tmp_path, rows)).rows
    ]
    assert kept == [
        {"score_chosen": 8.5, "score_rejected": 2.0, "gold_chosen": 0.1, "gold_rejected": -1.0},
        {"score_chosen": 5.0},
        {"score_chosen": 7.5},
        {},
    ]


def test_own_output_reads_back(tmp_path: Path) -> None:
    # What `spa` writes as judged pairs is accepted as labelled pairs.
    row = {**canonical(*CONVERSATIONS[0], row=9), "chosen_score": 1.5, "rejected_score": 0.5, "margin": 1.0}
    read = pairs_of(write_jsonl(tmp_path, [row])).rows[0]
    assert read == {**canonical(*CONVERSATIONS[0], row=1), "score_chosen": 1.5, "score_rejected": 0.5}
