"""Every column of a row is read, named as ignored, or makes the row malformed: no form loses what a model was asked."""

from pathlib import Path
from typing import Any

import pytest

from spa_recipes.data import sources
from spa_recipes.data.forms.cells import Cells
from spa_recipes.data.forms.form import CONTEXT_COLUMNS, SYSTEM, BadRowError, Form, Slot
from spa_recipes.data.forms.reading import Reading
from spa_recipes.data.sources import read_candidates, read_conversations, read_pairs, read_prompts
from spa_recipes.recipe.schema import Columns
from tests.kit.data import CONVERSATION, GOOD, error_of, source
from tests.kit.data_forms import assistant, system, user, write_jsonl

USES = (sources.PAIRS, sources.PROMPTS, sources.CONVERSATIONS, sources.CANDIDATES)
FORMS = [(use, form) for use in USES for form in use.forms]


def value_for(name: str, slot: Slot) -> Any:
    if name in ("first_wins", "second_wins", "tie"):
        return int(name == "first_wins")
    whole = (name in ("first", "second") and "text" not in slot.kinds) or name in ("chosen", "rejected")
    answer = "Fine." if name in ("first", "chosen") else "No."
    for kind in sorted(slot.kinds, key=lambda kind: kind != "text"):
        if kind == "text":
            return {"prompt": "What?", "label": "a"}.get(name, answer)
        if kind == "transcript":
            return f"\n\nHuman: What?\n\nAssistant: {answer}"
        if kind == "messages":
            return [user("What?"), *([assistant(answer)] if whole else [])]
        if kind == "texts":
            return ["Fine.", "No."]
        if kind == "ranked":
            return [{"text": "Fine.", "rank": 1}, {"text": "No.", "rank": 2}]
        if kind == "numbers":
            return [2, 1]
    raise AssertionError(slot)


def row_of(form: Form) -> dict[str, Any]:
    """A row that a form reads."""
    row = {slot.names[0]: value_for(name, slot) for name, slot in form.needs.items()}
    for name in ("chosen", "rejected"):
        if name in form.needs and "prompt" in form.needs and isinstance(row[form.needs[name].names[0]], list):
            row[form.needs[name].names[0]] = row[form.needs[name].names[0]][1:]
    if "whole conversations" in form.name and "prompt" in form.needs:
        row |= {"chosen": [user("What?"), assistant("Fine.")], "rejected": [user("What?"), assistant("No.")]}
    return row


def parse(form: Form, row: dict[str, Any], columns: Columns | None = None) -> Any:
    found, _ = Reading(form, columns or Columns(), [row], Cells([])).parse(row)
    return found


def prompt_of(found: Any) -> Any:
    return getattr(found, "prompt", found)


def refused_or(form: Form, row: dict[str, Any]) -> Any:
    """The prompt that is read, or the text of the refusal."""
    try:
        return prompt_of(parse(form, row))
    except BadRowError as error:
        return str(error)


@pytest.mark.parametrize(("use", "form"), FORMS, ids=lambda value: value.name)
def test_a_form_uses_or_refuses_every_column_that_may_be_context(use: Any, form: Form) -> None:
    row = row_of(form)
    plain = prompt_of(parse(form, row))
    names = {name for slot in form.needs.values() for name in slot.names}
    for column in sorted(CONTEXT_COLUMNS - names):
        value: Any = [["Who?", "Me."]] if column == "history" else "Speak like a pirate."
        found = refused_or(form, {**row, column: value})
        if isinstance(found, str):
            assert f"`{column}`" in found
        elif found == plain:
            assert form.whole
            assert column not in ("input", "context", "history", "tools", *SYSTEM.names)
        assert prompt_of(parse(form, {**row, column: ""})) == plain
        assert prompt_of(parse(form, {**row, column: None})) == plain


@pytest.mark.parametrize(("use", "form"), FORMS, ids=lambda value: value.name)
def test_every_form_reads_a_system_column(use: Any, form: Form) -> None:
    for column in SYSTEM.names:
        found = prompt_of(parse(form, {**row_of(form), column: "Be brief."}))
        assert found[0] == system("Be brief.")


CASES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "input beside prompt": (read_pairs, {**GOOD, "input": "a text"}, "`input`"),
    "history beside prompt": (read_pairs, {**GOOD, "history": [["a", "b"]]}, "`history`"),
    "tools that are none": (read_pairs, {**GOOD, "tools": [{"parameters": {}}]}, "a tool of `tools` has no function"),
    "tools in a message": (
        read_prompts, {"messages": [{**user("q"), "tools": [{"name": "f"}]}]}, "give a column `tools`",
    ),
    "another instruction": (read_pairs, {**GOOD, "instruction": "Who?"}, "`instruction`"),
    "images": (read_candidates, {"prompt": "q", "responses": ["a", "b"], "images": ["x.png"]}, "`images`"),
    "context beside completion": (read_conversations, {"prompt": "q", "completion": "a", "context": "c"}, "`context`"),
    "system message and column": (read_prompts, {"messages": [system("s"), user("q")], "system": "t"}, "two system"),
    "thoughts of an answer that is compared": (
        read_pairs,
        {"prompt": [user("q")], "chosen": [{**assistant("a"), "thinking": "hm"}], "rejected": [assistant("b")]},
        "`chosen` ends with an answer that has `thinking` beside its text",
    ),
    "thoughts of an answer in a list": (
        read_candidates, {"prompt": "q", "responses": [{**assistant("a"), "reasoning_content": "hm"}, assistant("b")]},
        "has `reasoning_content` beside its text",
    ),
    "half a weight": (
        read_conversations, {"messages": [user("q"), {**assistant("a"), "weight": 0.5}]},
        "message 2 of `messages` has the weight 0.5, where only 0 and 1 are read",
    ),
    "a preferred answer of weight 0": (
        read_pairs, {"prompt": [user("q")], "chosen": [{**assistant("a"), "weight": 0}], "rejected": [assistant("b")]},
        "ends with an answer of weight 0",
    ),
    "nothing to learn": (
        read_conversations, {"messages": [user("q"), {**assistant("a"), "weight": 0}]},
        "all answers have the weight 0",
    ),
    "old function call": (
        read_prompts, {"messages": [user("q"), {**assistant("a"), "function_call": {"name": "f"}}, user("r")]},
        "has `function_call` beside its text",
    ),
    "a call as an answer": (
        read_conversations,
        {"messages": [user("q"), {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}]},
        "ends with a call of a tool",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_context_that_is_not_read_is_a_malformed_row(case: str, tmp_path: Path) -> None:
    read, row, message = CASES[case]
    assert message in error_of(read, write_jsonl(tmp_path, [row])).what


def test_a_column_that_only_repeats_the_prompt_is_named_as_ignored(tmp_path: Path) -> None:
    row = {**GOOD, "instruction": "What?", "messages": CONVERSATION, "source": "x"}
    loaded = read_pairs(source(write_jsonl(tmp_path, [row])))
    assert loaded.ignored == ["instruction", "messages", "source"]
    assert loaded.line.endswith("; ignored: instruction, messages, source")


def test_a_recipe_can_leave_context_out(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, [{**GOOD, "input": "a text"}])
    assert "columns: {ignore: [input]}" in error_of(read_pairs, path).what
    assert read_pairs(source(path, columns=Columns(ignore=["input"]))).ignored == ["input"]


def test_context_of_a_late_row_is_not_lost(tmp_path: Path) -> None:
    late = {**GOOD, "system": "Be brief."}
    loaded = read_pairs(source(write_jsonl(tmp_path, [GOOD] * 50 + [late])))
    assert loaded.rows[-1]["prompt"] == [system("Be brief."), user("What?")]
    assert "system" in loaded.columns


def test_keys_of_messages_that_are_not_read_are_named(tmp_path: Path) -> None:
    row = {"messages": [{**user("q"), "country": "NO"}, assistant("a")]}
    assert read_conversations(source(write_jsonl(tmp_path, [row]))).ignored == ["messages.country"]
