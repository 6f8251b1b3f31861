"""Prompts, conversations and candidates."""

from pathlib import Path
from typing import Any

import pytest

from spa_recipes.data.rows import Message
from spa_recipes.data.sources import read_candidates, read_conversations, read_prompts
from spa_recipes.recipe.schema import Columns
from tests.kit.data import CONVERSATION, error_of, source, whole
from tests.kit.data_forms import FILES, assistant, system, trl_strings, user, write_jsonl

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
        ("preference", [1.0, 2.0, 1.5], [0, 1, None]),
        ("label", ["1", "2", "2"], [0, 1, 1]),
        ("other", [0, 1, 0], [None, None, None]),
    ],
)
def test_labels_of_two_responses(column: str, values: list[Any], labels: list[Any], tmp_path: Path) -> None:
    rows = [{"prompt": "What?", "response_a": "a", "response_b": "b", column: value} for value in values]
    assert [row["label"] for row in read_candidates(write_jsonl(tmp_path, rows)).rows] == labels
