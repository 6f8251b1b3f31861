"""Preference data in the forms in which people have it, made after public datasets: what each row becomes."""

import json
from pathlib import Path
from typing import Any

import pytest

from spa_recipes.data.sources import Loaded, read_candidates, read_conversations, read_pairs, read_prompts
from spa_recipes.recipe.schema import Columns
from tests.kit.data import error_of, source
from tests.kit.data_forms import assistant, system, user, write_csv, write_jsonl

TOOL_CALL = {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
CALLED = {**TOOL_CALL, "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
TALK = "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: What?\n\nAssistant: "
TURNS = [user("Hi"), assistant("Hello!"), user("What?")]
ARENA = {"conversation_a": [user("What?"), assistant("That.")], "conversation_b": [user("What?"), assistant("No.")]}

# Name: the form, a row, its prompt, and its pair.
PAIRS: dict[str, tuple[str, dict[str, Any], Any, tuple[str, str]]] = {
    "HH-RLHF": (
        "HH-RLHF transcripts", {"chosen": f"{TALK}That.", "rejected": f"{TALK}No."}, TURNS, ("That.", "No.")
    ),
    "transcript prompt": (
        "TRL explicit, strings", {"prompt": TALK, "chosen": "That.", "rejected": "No."}, TURNS, ("That.", "No.")
    ),
    "SHP": (
        "SHP",
        {"post_id": "x", "history": "What?", "human_ref_A": "No.", "human_ref_B": "That.", "labels": 0, "score_A": 3},
        [user("What?")], ("That.", "No."),
    ),
    "Nectar": (
        "ranked answers, as Nectar and UltraFeedback",
        {"prompt": "\n\nHuman: What?\n\nAssistant: ", "answers": [
            {"answer": "Hm.", "rank": 2.0}, {"answer": "No.", "rank": 3.0}, {"answer": "That.", "rank": 1.0}]},
        [user("What?")], ("That.", "No."),
    ),
    "UltraFeedback, original": (
        "ranked answers, as Nectar and UltraFeedback",
        {"instruction": "What?", "completions": [
            {"response": "Hm.", "overall_score": 5.0, "model": "a"}, {"response": "No.", "overall_score": 1.0},
            {"response": "That.", "overall_score": 8.5, "critique": "good"}]},
        [user("What?")], ("That.", "No."),
    ),
    "scores": (
        "answers and scores",
        {"prompt": "What?", "responses": ["No.", "That.", "Hm."], "scores": [1, 3, 2]},
        [user("What?")], ("That.", "No."),
    ),
    "HelpSteer2": (
        "HelpSteer preference",
        {"prompt": "What?", "response_1": "That.", "response_2": "No.", "preference_strength": -2},
        [user("What?")], ("That.", "No."),
    ),
    "HelpSteer3": (
        "HelpSteer preference",
        {"context": TURNS, "response1": "No.", "response2": "That.", "overall_preference": 3, "language": "english"},
        TURNS, ("That.", "No."),
    ),
    "orca": (
        "TRL explicit, strings",
        {"system": "Be brief.", "question": "What?", "chosen": "That.", "rejected": "No."},
        [system("Be brief."), user("What?")], ("That.", "No."),
    ),
    "distilabel orca": (
        "TRL explicit, strings",
        {"system": "", "input": "What?", "chosen": "That.", "rejected": "No.", "status": "unchanged"},
        [user("What?")], ("That.", "No."),
    ),
    "messages and strings": (
        "message-list prompt and string responses",
        {"messages": TURNS, "chosen": "That.", "rejected": "No."}, TURNS, ("That.", "No."),
    ),
    "blocks": (
        "TRL explicit, message lists",
        {"prompt": [{"role": "user", "content": [{"type": "text", "text": "Wh"}, {"type": "text", "text": "at?"}]}],
         "chosen": [{"role": "assistant", "content": [{"type": "text", "text": "That."}]}],
         "rejected": [assistant("No.")]},
        [user("What?")], ("That.", "No."),
    ),
    "tools": (
        "TRL explicit, message lists",
        {"prompt": [user("What?"), {"role": "assistant", "content": None, "tool_calls": [TOOL_CALL]},
                    {"role": "tool", "content": "sunny", "tool_call_id": "1", "name": "weather"}],
         "chosen": [assistant("That.")], "rejected": [assistant("No.")]},
        [user("What?"), {"role": "assistant", "content": "", "tool_calls": [CALLED]},
         {"role": "tool", "content": "sunny", "tool_call_id": "1", "name": "weather"}],
        ("That.", "No."),
    ),
    "chosen_response": (
        "TRL explicit, strings",
        {"prompt": "What?", "chosen_response": "That.", "rejected_response": "No."},
        [user("What?")], ("That.", "No."),
    ),
    "arena": (
        "arena conversations", {**ARENA, "winner": "model_a", "turn": 1}, [user("What?")], ("That.", "No.")
    ),
    "arena, winner columns": (
        "arena, winner columns",
        {"prompt": '["What?"]', "response_a": '["No."]', "response_b": '["That."]', "winner_model_a": 0,
         "winner_model_b": 1, "winner_tie": 0},
        [user("What?")], ("That.", "No."),
    ),
    "whole numbers": (
        "TRL explicit, strings", {"prompt": 12, "chosen": "That.", "rejected": "No."}, [user("12")], ("That.", "No.")
    ),
    "lists of one string": (
        "TRL explicit, strings",
        {"prompt": ["What?"], "chosen": ["That."], "rejected": ["No."]}, [user("What?")], ("That.", "No."),
    ),
    "JSON in texts": (
        "TRL implicit, whole conversations",
        {name: json.dumps([*TURNS, assistant(text)]) for name, text in (("chosen", "That."), ("rejected", "No."))},
        TURNS, ("That.", "No."),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PAIRS)
def test_a_form_that_people_have(case: str, tmp_path: Path) -> None:
    form, row, prompt, answers = PAIRS[case]
    path = write_jsonl(tmp_path, [row])
    loaded = read_pairs(source(path))
    (pair,) = loaded.rows
    assert loaded.form == form
    assert pair["prompt"] == prompt
    assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == answers
    assert not set(loaded.columns) & set(loaded.ignored)
    top = {name for name in loaded.ignored if "." not in name}
    assert {name for name, value in row.items() if value != ""} <= {*loaded.columns, *top}  # used, or named

    (judged,) = read_candidates(source(path)).rows
    assert judged["responses"][judged["label"] or 0] == answers[0]
    assert [row["prompt"] for row in read_prompts(source(path)).rows] == [prompt]


@pytest.mark.parametrize("case", ["orca", "arena", "arena, winner columns", "HelpSteer2", "messages and strings"])
def test_a_form_in_a_csv_file(case: str, tmp_path: Path) -> None:
    _, row, prompt, answers = PAIRS[case]
    (pair,) = read_pairs(source(write_csv(tmp_path, [row]))).rows
    assert pair["prompt"] == prompt
    assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == answers


def test_scores_stand_beside_the_pair(tmp_path: Path) -> None:
    (pair,) = read_pairs(source(write_jsonl(tmp_path, [PAIRS["scores"][1]]))).rows
    assert (pair["score_chosen"], pair["score_rejected"]) == (3.0, 1.0)


TIES: dict[str, list[dict[str, Any]]] = {
    "arena": [{**ARENA, "winner": winner} for winner in ("model_a", "tie", "tie (bothbad)", "model_b")],
    "orca": [{"input": "q", "chosen": "a", "rejected": "b", "status": status} for status in ("", "tie", "tie", "x")],
    "scores": [
        {"prompt": "q", "responses": ["a", "b"], "scores": scores} for scores in ([1, 2], [3, 3], [4, 4], [2, 1])
    ],
    "HelpSteer": [
        {"prompt": "q", "response_1": "a", "response_2": "b", "preference_strength": value} for value in (1, 0, 0, -3)
    ],
}


@pytest.mark.parametrize("case", TIES)
def test_ties_give_no_pair_and_are_counted(case: str, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, TIES[case])
    loaded = read_pairs(source(path))
    assert [row["row"] for row in loaded.rows] == [1, 4]
    assert loaded.skipped == [(2, "a tie"), (3, "a tie")]
    labels = [row["label"] for row in read_candidates(source(path)).rows]
    assert labels[1:3] == [None, None]
    assert None not in (labels[0], labels[3])
    assert len(read_prompts(source(path)).rows) == 4


# --- answers that are good or bad


def kto(prompt: str, completion: str, label: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion, "label": label}


KTO = [kto("q1", "good 1", True), kto("q2", "good 2", True), kto("q1", "bad 1", False), kto("q1", "bad 1b", False),
       kto("q3", "bad 3", False), kto("q1", "good 1b", True)]  # fmt: skip


def test_good_and_bad_answers_are_pairs_where_a_prompt_has_both(tmp_path: Path) -> None:
    loaded = read_pairs(source(write_jsonl(tmp_path, KTO)))
    assert [(row["chosen"][0]["content"], row["rejected"][0]["content"], row["row"]) for row in loaded.rows] == [
        ("good 1", "bad 1", 3),
        ("good 1b", "bad 1b", 6),
    ]
    assert loaded.skipped == [(number, "its prompt has no answer with the other label") for number in (2, 5)]
    assert [row["responses"] for row in read_candidates(source(tmp_path / "data.jsonl")).rows] == [
        ["good 1", "bad 1"],
        ["good 1b", "bad 1b"],
    ]


def test_only_good_answers_are_demonstrations(tmp_path: Path) -> None:
    loaded: Loaded[Any] = read_conversations(source(write_jsonl(tmp_path, KTO)))
    assert [row["messages"][-1]["content"] for row in loaded.rows] == ["good 1", "good 2", "good 1b"]
    assert {reason for _, reason in loaded.skipped} == {"an answer that is labelled as bad: no demonstration"}


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Say", "input": "hi", "output": "hi"},
        {"instruction": "Say", "context": "hi", "response": "hi", "category": "x"},
        {"messages": [user("Say\nhi"), {**assistant("hi"), "weight": 1}]},
        {"conversation": [{"from": "human", "value": "Say\nhi"}, {"from": "gpt", "value": "hi"}]},
    ],
)
def test_demonstrations_that_people_have(row: dict[str, Any], tmp_path: Path) -> None:
    (read,) = read_conversations(source(write_jsonl(tmp_path, [row]))).rows
    assert [(message["role"], message["content"]) for message in read["messages"]] == [
        ("user", "Say\nhi"),
        ("assistant", "hi"),
    ]


# --- columns that a recipe names


def test_named_columns_of_every_use(tmp_path: Path) -> None:
    row = {"q": "What?", "x": "No.", "y": "That.", "who": "right", "s": "Be brief.", "m": 0.5, "w": 2, "key": 17}
    other = {**row, "who": "left"}
    columns = Columns(prompt="q", chosen="x", rejected="y", label="who", positive="left", system="s", margin="m",
                      weight="w", id="key")  # fmt: skip
    loaded = read_pairs(source(write_jsonl(tmp_path, [row, other]), columns=columns))
    assert [(pair["chosen"][0]["content"], pair["margin"], pair["weight"], pair["id"]) for pair in loaded.rows] == [
        ("That.", 0.5, 2.0, "17"),
        ("No.", 0.5, 2.0, "17"),
    ]
    assert loaded.rows[0]["prompt"] == [system("Be brief."), user("What?")]
    assert loaded.ignored == []
    scored = write_jsonl(tmp_path, [{"q": "What?", "texts": ["No.", "That."], "points": [1, 2]}])
    (pair,) = read_pairs(source(scored, columns=Columns(prompt="q", chosen="texts", scores="points"))).rows
    assert pair["chosen"][0]["content"] == "That."


def test_a_named_column_that_the_form_does_not_read_is_no_silence(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, [{"prompt": "What?", "completion": "That.", "m": 1}])
    assert "columns of no known form" in error_of(read_conversations, path, columns=Columns(margin="m")).what
