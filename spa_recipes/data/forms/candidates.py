"""Responses to judge, of which one may be labelled as the better one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from spa_recipes.data.forms.form import BadRowError, Form, Raw, kind_of
from spa_recipes.data.forms.messages import check_prompt, check_text, completion, prompt_of, read_messages
from spa_recipes.data.forms.pairs import PAIR_FORMS, Pair
from spa_recipes.data.rows import CandidatesRow, Message, prompt_id

LABEL_COLUMNS = ("label", "preference")


class Candidates(NamedTuple):
    """A prompt and its responses, not checked yet; `label` None where only a label column can tell."""

    prompt: list[Message]
    responses: list[str]
    label: int | None


def candidates_row(prompt: list[Message], responses: list[str], label: int | None, row: int) -> CandidatesRow:
    """Check a prompt and its responses and give them their canonical form."""
    check_prompt(prompt)
    if len(responses) < 2:
        raise BadRowError(f"{len(responses)} response, where at least 2 are needed to judge")
    for index, text in enumerate(responses):
        check_text(text, f"response {index + 1}")
    return {
        "prompt_id": prompt_id(prompt),
        "prompt": prompt,
        "responses": responses,
        "label": label if label is not None and 0 <= label < len(responses) else None,
        "row": row,
    }


def _parse_responses(row: Raw) -> Candidates:
    prompt = prompt_of(row)
    responses = row["responses"]
    if kind_of(responses) == "messages":
        messages = read_messages(responses, "responses")
        if any(message["role"] != "assistant" for message in messages):
            raise BadRowError("`responses` holds a message that is not of assistant")
        responses = [message["content"] for message in messages]
    return Candidates(prompt, list(responses), None)


def _parse_two_responses(row: Raw) -> Candidates:
    prompt = prompt_of(row)
    return Candidates(prompt, [completion(row, name, prompt) for name in ("response_a", "response_b")], None)


def _labelled(parse_pair: Callable[[Raw], Pair]) -> Callable[[Raw], Candidates]:
    def parse(row: Raw) -> Candidates:
        pair = parse_pair(row)
        return Candidates(pair.prompt, [pair.chosen, pair.rejected], 0)

    return parse


CANDIDATE_FORMS = (
    Form(
        "prompt and responses",
        {"prompt": ("text", "messages"), "responses": ("texts", "messages")},
        _parse_responses,
        optional=LABEL_COLUMNS,
    ),
    Form(
        "prompt, response_a and response_b",
        {"prompt": ("text", "messages"), "response_a": ("text", "messages"), "response_b": ("text", "messages")},
        _parse_two_responses,
        optional=LABEL_COLUMNS,
    ),
    *(form._replace(parse=_labelled(form.parse)) for form in PAIR_FORMS),
)


def read_labels(rows: Sequence[Raw]) -> list[int | None]:
    """Which of two responses a label column prefers, where its meaning is beyond doubt.

    `a` and `b` (or `response_a`, ...) name the response; numbers count from 0 where a 0 occurs and from 1 where a 2
    occurs. Anything else is no label.
    """
    for column in LABEL_COLUMNS:
        values = [_label_value(row.get(column)) for row in rows]
        numbers = {value for value in values if isinstance(value, int)}
        if numbers and numbers <= {0, 1} and 0 in numbers:
            return [value if isinstance(value, int) else None for value in values]
        if numbers and numbers <= {1, 2} and 2 in numbers:
            return [value - 1 if isinstance(value, int) else None for value in values]
        names = {"a": 0, "b": 1}
        if not numbers and any(value in names for value in values):
            return [names.get(value) if isinstance(value, str) else None for value in values]
    return [None] * len(rows)


def _label_value(value: Any) -> int | str | None:
    if isinstance(value, str):
        text = value.strip().lower().removeprefix("response_").removeprefix("model_")
        return int(text) if text in ("0", "1", "2") else text
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if value in (0, 1, 2) else None
