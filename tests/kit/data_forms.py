"""Labelled pairs in every form that is accepted, and in every kind of file."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from spa_recipes.data.rows import Message, PairRow, prompt_id

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
