"""Demonstrations: conversations that end with the assistant."""

from __future__ import annotations

from collections.abc import Callable

from spa_recipes.data.forms.form import MESSAGES, Form, Raw
from spa_recipes.data.forms.messages import (
    check_prompt,
    check_text,
    completion,
    conversation_of,
    prompt_of,
    split_answer,
)
from spa_recipes.data.rows import ConversationRow, Message


def conversation_row(messages: list[Message], row: int) -> ConversationRow:
    """Check a demonstration and give it its canonical form."""
    prompt, answer = split_answer(messages, "the conversation")
    check_prompt(prompt)
    check_text(answer, "the last answer")
    return {"messages": messages, "row": row}


def _conversation(column: str) -> Callable[[Raw], list[Message]]:
    def parse(row: Raw) -> list[Message]:
        return conversation_of(row, column)

    return parse


def _parse_prompt_completion(row: Raw) -> list[Message]:
    prompt = prompt_of(row)
    return [*prompt, {"role": "assistant", "content": completion(row, "completion", prompt)}]


WHOLE_CONVERSATIONS = (
    Form("conversations", {"messages": MESSAGES}, _conversation("messages"), optional=("system",)),
    Form(
        "ShareGPT conversations",
        {"conversations": MESSAGES},
        _conversation("conversations"),
        optional=("system",),
        without=("messages",),
    ),
)
CONVERSATION_FORMS = (
    *WHOLE_CONVERSATIONS,
    Form(
        "prompt and completion",
        {"prompt": ("text", "messages"), "completion": ("text", "messages")},
        _parse_prompt_completion,
        without=("messages", "conversations"),
    ),
)
