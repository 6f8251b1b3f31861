"""Messages in all their notations, and what a prompt and an answer must be."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from spa_recipes.data.forms.cells import is_list_as_text
from spa_recipes.data.forms.form import (
    KIND_NAMES,
    TRANSCRIPT_TURNS,
    BadRowError,
    is_empty,
    is_transcript,
    kind_of,
    kind_of_mapping,
)
from spa_recipes.data.rows import THOUGHTS, Message

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "tool": "tool",
}
READ_KEYS = frozenset(("role", "from", "content", "value", "tool_calls", "tool_call_id", "name", "weight", *THOUGHTS))
"""Keys of a message that are read. Of the others, those that change what a model would see are refused."""
_REFUSED_KEYS = {
    **dict.fromkeys(("images", "image", "audio", "video"), "only text is read"),
    "function_call": "write it as `tool_calls`",
    "tools": "give a column `tools`",
    "functions": "give a column `tools`",
}
"""Keys of a message that are not read, and why, or what to do."""
_TURN = re.compile(r"\n\n(Human|Assistant):")
TRANSCRIPTS = (
    TRANSCRIPT_TURNS,
    ("### Instruction", "### Response"),
    ("### Human:", "### Assistant:"),
    ("USER:", "ASSISTANT:"),
    ("[INST]", "[/INST]"),
    ("<|im_start|>user", "<|im_start|>assistant"),
    ("<|user|>", "<|assistant|>"),
    ("<extra_id_1>User", "<extra_id_1>Assistant"),
)
"""Marks of the two sides of a transcript: a text that has both is a conversation and not one answer."""
SERIALISED_STARTS = ("[", "{")
"""How messages begin that were written into a text."""
_PYTHON = re.compile(r"\[?\s*\{\s*'(role|content|from|value)'\s*:")


def read_messages(value: Any, name: str) -> list[Message]:
    """Read messages in any of their notations: role/content, from/value, one alone, a struct of lists, a transcript."""
    if isinstance(value, str) and is_transcript(value):
        return _read_transcript(value)
    if isinstance(value, Mapping):
        value = [value] if kind_of_mapping(value) == "message" else _rows_of_struct(value, name)
    if not isinstance(value, list | tuple) or not value:
        raise BadRowError(f"`{name}` is {KIND_NAMES[kind_of(value)]}, where a list of messages is expected")
    return [_message(item, number, name) for number, item in enumerate(value, start=1)]


def user(text: str) -> Message:
    """A turn of the user."""
    return {"role": "user", "content": text}


def read_prompt(value: Any, name: str) -> list[Message]:
    """A prompt: a string, messages, or a transcript whose last turn may be the empty one of the assistant."""
    if isinstance(value, str) and not is_transcript(value):
        refuse_list(value, name)
        return [user(value)]
    messages = read_messages(value, name)
    if isinstance(value, str) and messages[-1]["role"] == "assistant" and not messages[-1]["content"]:
        messages.pop()
    return messages


def refuse_list(prompt: str, name: str) -> None:
    """Refuse turns that were written into the text of a prompt as a list of strings."""
    if is_list_as_text(prompt):
        raise BadRowError(f"`{name}` holds a list of strings as text, where a prompt is one string or messages")


def completion(value: Any, name: str, prompt: list[Message]) -> str:
    """The one response in a column, which is compared with others, as its text."""
    if isinstance(value, str) and not is_transcript(value):
        return value
    return split_answer([completion_message(value, name, prompt)], f"`{name}`")[1]


def completion_message(value: Any, name: str, prompt: list[Message]) -> Message:
    """The one response in a column: a string, a message, or a list that may repeat the prompt in front."""
    if isinstance(value, str) and not is_transcript(value):
        return {"role": "assistant", "content": value}
    messages = read_messages(value, name)
    if len(messages) > 1 and messages[: len(prompt)] == prompt:
        messages = messages[len(prompt) :]
    if len(messages) != 1:
        raise BadRowError(f"`{name}` holds {len(messages)} messages, where one of assistant is expected")
    return last_answer(messages, f"`{name}`")


def with_system(system: Any, messages: list[Message]) -> list[Message]:
    """Put the text of a column `system` as a message in front of a conversation that has none."""
    if system is None or system == "":
        return messages
    if not isinstance(system, str):
        raise BadRowError("`system` is not a string")
    if messages and messages[0]["role"] == "system":
        if messages[0]["content"] == system:
            return messages
        raise BadRowError("there are two system messages: the column `system` and one in the conversation")
    return [{"role": "system", "content": system}, *messages]


def with_tools(value: Any, messages: list[Message]) -> list[Message]:
    """Put the tools of a column with the first message of a conversation."""
    if value is None or not messages:
        return messages
    first: Message = {**messages[0], "tools": _tools(value)}
    return [first, *messages[1:]]


def _tools(value: Any) -> list[dict[str, Any]]:
    """Tools as templates expect them: a list of `{type: function, function: {name: ...}}`, of objects or as JSON."""
    try:
        items = json.loads(value) if isinstance(value, str) else value
        items = [json.loads(item) if isinstance(item, str) else _without_nulls(item) for item in items]
        if not all(isinstance(item, dict) for item in items):
            raise ValueError
    except (ValueError, TypeError, RecursionError):
        raise BadRowError("`tools` is neither a list of objects nor JSON of one") from None
    tools = [item if "function" in item else {"type": "function", "function": item} for item in items]
    for function in (tool["function"] for tool in tools):
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise BadRowError("a tool of `tools` has no function with a name")
    return tools


def split_answer(messages: list[Message], name: str) -> tuple[list[Message], str]:
    """Take the assistant's last message off a conversation: a text that is compared with others."""
    last = last_answer(messages, name)
    if (thoughts := next((key for key in THOUGHTS if key in last), None)) is not None:
        raise BadRowError(
            f"{name} ends with an answer that has `{thoughts}` beside its text, which only demonstrations may have; "
            "write the thoughts into the text as the model does"
        )
    if last.get("weight") == 0:
        raise BadRowError(f"{name} ends with an answer of weight 0, which is not to be learned from")
    return messages[:-1], last["content"]


def last_answer(messages: list[Message], name: str) -> Message:
    """The last message of a conversation, which is a text of the assistant."""
    if not messages:
        raise BadRowError(f"{name} is empty")
    last = messages[-1]
    if last["role"] != "assistant":
        raise BadRowError(f"{name} ends with a message of {last['role']}, not of assistant")
    if "tool_calls" in last:
        raise BadRowError(f"{name} ends with a call of a tool, which is no text to compare or to learn")
    return last


def asked(messages: list[Message]) -> list[Message]:
    """A prompt without the weights of its answers: nothing of a prompt is learned."""
    if not any("weight" in message for message in messages):
        return messages
    return [cast("Message", {key: value for key, value in m.items() if key != "weight"}) for m in messages]


def check_prompt(messages: Sequence[Message]) -> None:
    """A prompt ends with the user, or with what a tool gave; a system message may only come first."""
    if not messages:
        raise BadRowError("there is no prompt before the answer")
    if messages[-1]["role"] not in ("user", "tool"):
        raise BadRowError(f"the prompt ends with a message of {messages[-1]['role']}, not of user")
    for number, message in enumerate(messages, start=1):
        if message["role"] == "system" and number > 1:
            raise BadRowError(f"message {number} of the prompt is of system, which may only come first")
        # An empty system message means something: it replaces the template's default one.
        may_be_empty = message["role"] in ("system", "tool") or "tool_calls" in message
        check = _check_utf8 if may_be_empty else check_text
        check(message["content"], f"message {number} of the prompt")


def check_answer(text: Any, name: str) -> None:
    """An answer is a text that is neither a conversation nor messages written as text."""
    check_text(text, name)
    for one, other in TRANSCRIPTS:
        if one in text and other in text and _begins_lines(text, one.strip(), other.strip()):
            raise BadRowError(f"{name} is a transcript ({one.strip()} ... {other.strip()}), not one answer")
    check_not_serialised(text, name)


def _begins_lines(text: str, *marks: str) -> bool:
    """Whether each of some marks stands at the beginning of a line."""
    return all(re.search(rf"^{re.escape(mark)}", text, re.MULTILINE) for mark in marks)


def check_not_serialised(text: str, name: str) -> None:
    """Refuse messages that were written into a text column as JSON or as Python prints them."""
    if not text.startswith(SERIALISED_STARTS):
        return
    if _PYTHON.match(text):
        raise BadRowError(f"{name} holds messages as Python prints them, which cannot be read back safely")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return
    if kind_of(value) in ("messages", "message"):
        raise BadRowError(f"{name} holds messages as JSON text, unlike the first rows")


def check_text(text: Any, name: str) -> None:
    """A text is a string that UTF-8 can write and that does not consist of white space only."""
    if not isinstance(text, str):
        raise BadRowError(f"{name} is {KIND_NAMES[kind_of(text)]}, not a string")
    if not text or text.isspace():
        raise BadRowError(f"{name} is empty")
    _check_utf8(text, name)


def _check_utf8(text: str, name: str) -> None:
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRowError(f"{name} holds half a surrogate pair at character {error.start + 1}") from error


def _message(item: Any, number: int, column: str) -> Message:
    if not isinstance(item, Mapping):
        raise BadRowError(f"message {number} of `{column}` is not an object with role and content")
    role = item.get("role", item.get("from"))
    content = item.get("content", item.get("value"))
    known = ROLES.get(role) if isinstance(role, str) else None
    if known is not None and isinstance(content, str) and len(item) == 2:
        return {"role": known, "content": content}
    name = f"message {number} of `{column}`"
    if known is None:
        raise BadRowError(f"{name} is of {role!r}, not of system, user (human), assistant (gpt) or tool"[:200])
    for key, why in _REFUSED_KEYS.items():
        if not is_empty(item.get(key)):
            raise BadRowError(f"{name} has `{key}` beside its text, which is not read: {why}")
    message: Message = {"role": known, "content": _text_of(content, item, name)}
    if item.get("weight") not in (None, 0, 1):
        raise BadRowError(f"{name} has the weight {item['weight']!r}, where only 0 and 1 are read"[:200])
    if item.get("weight") == 0 and known == "assistant":  # nothing else is learned anyway
        message["weight"] = 0
    if not is_empty(item.get("tool_calls")):
        message["tool_calls"] = _tool_calls(item["tool_calls"], name)
    for key in ("tool_call_id", "name", *THOUGHTS):
        value = item.get(key)
        if isinstance(value, str) and value:
            message[key] = value  # type: ignore[literal-required]
        elif not is_empty(value):
            raise BadRowError(f"`{key}` of {name} is not a string")
    return message


def _text_of(content: Any, item: Mapping[str, Any], name: str) -> str:
    """The text of a message: a string, or blocks of text one after the other."""
    if isinstance(content, str):
        return content
    if content is None and not is_empty(item.get("tool_calls")):
        return ""
    if not isinstance(content, list | tuple) or not content:
        raise BadRowError(f"{name} has no text but {'null' if content is None else 'a ' + type(content).__name__}")
    texts = []
    for block in content:
        kind = block.get("type", "text") if isinstance(block, Mapping) else None
        text = block.get("text") if isinstance(block, Mapping) else None
        if kind != "text" or not isinstance(text, str):
            held = f"a block of {kind}" if isinstance(kind, str) else f"a {type(block).__name__}"
            raise BadRowError(f"{name} holds {held}, where only text is read"[:200])
        texts.append(text)
    return "".join(texts)


def _tool_calls(calls: Any, name: str) -> list[dict[str, Any]]:
    """Calls of tools as templates expect them: with arguments as an object, and without what is null."""
    if not isinstance(calls, list | tuple) or not all(isinstance(call, Mapping) for call in calls):
        raise BadRowError(f"`tool_calls` of {name} is not a list of objects")
    read = [_without_nulls(call) for call in calls]
    for call in read:
        function = call.get("function", call)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadRowError(f"a call of a tool in {name} has no function with a name")
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            try:
                function["arguments"] = json.loads(arguments or "{}")
            except (ValueError, RecursionError):
                raise BadRowError(f"the arguments of a call of a tool in {name} are not JSON") from None
    try:
        json.dumps(read, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError):
        raise BadRowError(f"`tool_calls` of {name} cannot be written as JSON") from None
    return read


def _without_nulls(value: Any) -> Any:
    """Parquet gives every object the keys of all others, as nulls."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list | tuple) else value


def _read_transcript(text: str) -> list[Message]:
    parts = _TURN.split(text if text.startswith("\n\n") else f"\n\n{text}")
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[mark], "content": said.strip()} for mark, said in zip(parts[1::2], parts[2::2], strict=True)]


def _rows_of_struct(value: Mapping[str, Any], name: str) -> list[Any]:
    """Older datasets keep a list of messages as a struct of lists."""
    if kind_of_mapping(value) != "messages":
        raise BadRowError(f"`{name}` is not a list of messages")
    if len({len(part) for part in value.values() if isinstance(part, list | tuple)}) != 1:
        raise BadRowError(f"`{name}` has lists of different lengths")
    lists = {key: part for key, part in value.items() if isinstance(part, list | tuple)}
    return [dict(zip(lists, items, strict=True)) for items in zip(*lists.values(), strict=True)]
