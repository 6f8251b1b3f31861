"""Every accepted form of labelled pairs, in every kind of file."""

from pathlib import Path

import pytest

from spa_recipes.data.rows import Message, PairRow
from spa_recipes.data.sources import Loaded, read_candidates, read_pairs, read_prompts
from spa_recipes.recipe.schema import DatasetSource
from tests.kit.data_forms import (
    FILES,
    FOLDERS,
    FORMS,
    Raw,
    assistant,
    canonical,
    sharegpt,
    system,
    trl_implicit,
    trl_strings,
    user,
    write_jsonl,
    write_parquet,
)

# --- from (prompt messages, chosen, rejected) to a raw row of a form


# --- from raw rows to files


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
        return {key: [message[key] for message in messages] for key in ("role", "content")}

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
