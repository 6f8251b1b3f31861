"""What a chat template is given, and the text that it makes of it. What it would leave out silently is refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from spa_recipes.data.controls import Controls
from spa_recipes.data.rows import THOUGHTS, Message
from spa_recipes.data.template import render
from spa_recipes.errors import DataError

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_TOOLS = re.compile(r"\btools\b")
_READS = {key: re.compile(rf"[.'\"]{key}\b") for key in ("tool_calls", *THOUGHTS)}
"""How a template reads what a message has beside its text."""


class Marked(NamedTuple):
    """A rendered conversation, and the characters [start, end) of each of the assistant's turns."""

    text: str
    spans: list[tuple[int, int]]


def apply(
    tokenizer: Any, messages: Sequence[Any], generation_prompt: bool = True, variables: Mapping[str, Any] | None = None
) -> str:
    """The text of a conversation by the tokenizer's chat template.

    Args:
        messages: in the form of `Message`; what was written may be hidden by `Controls`.
        generation_prompt: with the beginning of the assistant's next turn.
        variables: of the template, beside the messages.

    Raises:
        DataError: the template fails, or does not read something that the messages have.
    """
    shown, tools = _given(tokenizer, messages)
    return _rendered(
        lambda: tokenizer.apply_chat_template(
            shown, tokenize=False, add_generation_prompt=generation_prompt, tools=tools, **(variables or {})
        ),
        messages,
    )


def marks_answers(tokenizer: Any) -> bool:
    """Whether the template itself marks what the assistant wrote, by `{% generation %}`."""
    return bool(_GENERATION.search(tokenizer.get_chat_template()))


def apply_marked(tokenizer: Any, messages: Sequence[Any], variables: Mapping[str, Any] | None = None) -> Marked:
    """A whole conversation by a template that marks what the assistant wrote; arguments and errors as in `apply`."""
    from transformers.utils.chat_template_utils import render_jinja_template

    shown, tools = _given(tokenizer, messages)
    spans: list[tuple[int, int]] = []

    def whole() -> str:
        texts, marked = render_jinja_template(
            [shown],
            tools=tools,
            chat_template=tokenizer.get_chat_template(tools=tools),
            return_assistant_tokens_mask=True,
            **{**tokenizer.special_tokens_map, **(variables or {})},
        )
        spans.extend(marked[0])
        return str(texts[0])

    return Marked(_rendered(whole, messages), spans)


def conversation_ids(controls: Controls, messages: Sequence[Message]) -> list[int]:
    """Token ids of a whole conversation as the tokenizer's chat template writes it: what a foreign model reads.

    Raises:
        DataError: as `apply`.
    """
    return controls.encode(apply(controls.tokenizer, controls.hide(messages), generation_prompt=False))


def _given(tokenizer: Any, messages: Sequence[Any]) -> tuple[list[Any], list[Any] | None]:
    """The messages as a template gets them, and the tools of the conversation, which stand with its first message.

    Raises:
        DataError: the template does not read the tools, or the calls or thoughts of a message.
    """
    tools = messages[0].get("tools") if messages else None
    beside = {key for message in messages for key in message if key in _READS}
    if tools is None and not beside:
        return list(messages), None
    template = tokenizer.get_chat_template(tools=tools)
    for key in sorted(beside):
        if not _READS[key].search(template):
            raise DataError(
                f"the chat template does not read `{key}` of a message",
                fix="write it into the text as the model does, set another model.chat_template, or leave it out",
            )
    if tools is not None and not _TOOLS.search(template):
        raise DataError(
            "the chat template does not read `tools`",
            fix="leave them out by columns: {ignore: [tools]}, or set another model.chat_template",
        )
    return [{key: value for key, value in message.items() if key != "tools"} for message in messages], tools


def _rendered(template: Callable[[], str], messages: Sequence[Message]) -> str:
    """The text of a template that shows these messages.

    Raises:
        DataError: it fails.
    """
    try:
        return render(template)
    except Exception as error:  # a template is a program: it can fail in any way
        roles = ", ".join(message["role"] for message in messages)
        raise DataError(
            f"the chat template fails on a conversation of {roles}: {str(error) or type(error).__name__}",
            fix="change the data or the template",
        ) from error
