"""Demonstrations: conversations that end with the assistant."""

from __future__ import annotations

from spa_recipes.data.forms.answers import alpaca_prompt
from spa_recipes.data.forms.form import MESSAGES, TEXT, Form, NoPairError, Raw, Slot
from spa_recipes.data.forms.messages import (
    check_answer,
    check_prompt,
    completion_message,
    last_answer,
    read_messages,
    read_prompt,
)
from spa_recipes.data.forms.pairs import ALPACA_MAY, JUDGED, PROMPT_NAMES
from spa_recipes.data.rows import ConversationRow, Message

COMPLETION = ("completion", "response", "answer", "output")


def conversation_row(messages: list[Message], row: int) -> ConversationRow:
    """Check a demonstration and give it its canonical form."""
    answer = last_answer(messages, "the conversation")
    check_prompt(messages[:-1])
    check_answer(answer["content"], "the last answer")
    if all(message.get("weight") == 0 for message in messages if message["role"] == "assistant"):
        raise NoPairError("all answers have the weight 0: nothing to learn")
    return {"messages": messages, "row": row}


def _parse_conversation(row: Raw) -> list[Message]:
    return read_messages(row["prompt"], "prompt")


def _parse_prompt_completion(row: Raw) -> list[Message]:
    prompt = read_prompt(row["prompt"], "prompt")
    return [*prompt, completion_message(row["chosen"], "chosen", prompt)]


def _parse_alpaca(row: Raw) -> list[Message]:
    return [*alpaca_prompt(row), {"role": "assistant", "content": row["chosen"]}]


WHOLE_CONVERSATIONS = (
    Form("conversations", {"prompt": Slot(("messages",), MESSAGES)}, _parse_conversation, whole=True),
    Form(
        "ShareGPT conversations",
        {"prompt": Slot(("conversations", "conversation"), MESSAGES)},
        _parse_conversation,
        without=("messages",),
        whole=True,
    ),
)
CONVERSATION_FORMS = (
    *WHOLE_CONVERSATIONS,
    JUDGED._replace(parse=_parse_prompt_completion),
    Form(
        "prompt and completion",
        {
            "prompt": Slot(PROMPT_NAMES, ("text", "transcript", "messages")),
            "chosen": Slot(COMPLETION, ("text", "messages")),
        },
        _parse_prompt_completion,
        without=("messages", "conversations", "instruction"),
    ),
    Form(
        "Alpaca demonstrations",
        {"prompt": Slot(("instruction",), TEXT), "chosen": Slot(COMPLETION, TEXT)},
        _parse_alpaca,
        may={**ALPACA_MAY, "input": Slot(("input", "context"))},
        without=("prompt", "messages", "conversations"),
    ),
)
"""Forms of demonstrations, in the order in which they are tried."""
