"""Messages in all their notations, and what a prompt and an answer must be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spa_recipes.data.forms.form import KIND_NAMES, BadRowError, Raw, kind_of, kind_of_mapping
from spa_recipes.data.rows import Message

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
}


def read_messages(value: Any, name: str) -> list[Message]:
    """Read messages in any of their notations: role/content, from/value, a single one, or columns of a struct."""
    if isinstance(value, Mapping):
        value = [value] if kind_of_mapping(value) == "message" else _rows_of_struct(value, name)
    if not isinstance(value, list | tuple) or not value:
        raise BadRowError(f"`{name}` is {KIND_NAMES[kind_of(value)]}, where a list of messages is expected")
    return [_message(item, f"message {number} of `{name}`") for number, item in enumerate(value, start=1)]


def user(text: str) -> Message:
    """A turn of the user."""
    return {"role": "user", "content": text}


def prompt_of(row: Raw) -> list[Message]:
    """The prompt in the column of that name: a string or messages."""
    return [user(row["prompt"])] if isinstance(row["prompt"], str) else read_messages(row["prompt"], "prompt")


def conversation_of(row: Raw, column: str) -> list[Message]:
    """The conversation in a column; a column `system` gives it a system message."""
    return with_system(row, read_messages(row[column], column))


def completion(row: Raw, column: str, prompt: list[Message]) -> str:
    """The one response in a column: a string, a message, or a list that may repeat the prompt in front."""
    value = row[column]
    if isinstance(value, str):
        return value
    messages = read_messages(value, column)
    if len(messages) > 1 and messages[: len(prompt)] == prompt:
        messages = messages[len(prompt) :]
    if len(messages) != 1:
        raise BadRowError(f"`{column}` holds {len(messages)} messages, where one of assistant is expected")
    return split_answer(messages, f"`{column}`")[1]


def with_system(row: Raw, messages: list[Message]) -> list[Message]:
    """Put the system message of the column `system` in front of a conversation that has none."""
    system = row.get("system")
    if system is None or system == "":
        return messages
    if not isinstance(system, str):
        raise BadRowError("`system` is not a string")
    if messages and messages[0]["role"] == "system":
        raise BadRowError("there are two system messages: the column `system` and one in the conversation")
    return [{"role": "system", "content": system}, *messages]


def split_answer(messages: list[Message], name: str) -> tuple[list[Message], str]:
    """Take the assistant's last message off a conversation."""
    if not messages:
        raise BadRowError(f"{name} is empty")
    if messages[-1]["role"] != "assistant":
        raise BadRowError(f"{name} ends with a message of {messages[-1]['role']}, not of assistant")
    return messages[:-1], messages[-1]["content"]


def check_prompt(messages: Sequence[Message]) -> None:
    """A prompt ends with the user; a system message may only come first."""
    if not messages:
        raise BadRowError("there is no prompt before the answer")
    if messages[-1]["role"] != "user":
        raise BadRowError(f"the prompt ends with a message of {messages[-1]['role']}, not of user")
    for number, message in enumerate(messages, start=1):
        if message["role"] == "system" and number > 1:
            raise BadRowError(f"message {number} of the prompt is of system, which may only come first")
        # An empty system message means something: it replaces the template's default one.
        check = _check_utf8 if message["role"] == "system" else check_text
        check(message["content"], f"message {number} of the prompt")


def check_text(text: Any, name: str) -> None:
    """A text is a string that UTF-8 can write and that does not consist of white space only."""
    if not isinstance(text, str):
        raise BadRowError(f"{name} is {KIND_NAMES[kind_of(text)]}, not a string")
    if not text.strip():
        raise BadRowError(f"{name} is empty")
    _check_utf8(text, name)


def _check_utf8(text: str, name: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRowError(f"{name} holds half a surrogate pair at character {error.start + 1}") from error


def _message(item: Any, name: str) -> Message:
    if not isinstance(item, Mapping):
        raise BadRowError(f"{name} is not an object with role and content")
    role = item.get("role", item.get("from"))
    content = item.get("content", item.get("value"))
    if not isinstance(role, str) or role not in ROLES:
        raise BadRowError(f"{name} is of {role!r}, not of system, user (human) or assistant (gpt)"[:200])
    if not isinstance(content, str):
        raise BadRowError(f"{name} has no text but {'null' if content is None else 'a ' + type(content).__name__}")
    return {"role": ROLES[role], "content": content}


def _rows_of_struct(value: Mapping[str, Any], name: str) -> list[Any]:
    """Older datasets keep a list of messages as a struct of lists."""
    if kind_of_mapping(value) != "messages":
        raise BadRowError(f"`{name}` is not a list of messages")
    if len({len(part) for part in value.values() if isinstance(part, list | tuple)}) != 1:
        raise BadRowError(f"`{name}` has lists of different lengths")
    lists = {key: part for key, part in value.items() if isinstance(part, list | tuple)}
    return [dict(zip(lists, items, strict=True)) for items in zip(*lists.values(), strict=True)]
