"""Which rows a model can read: what its chat template or its tokenizer refuses is told when the data are read."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from spa_recipes.data.model_files import ModelFiles, embeddings_of
from spa_recipes.data.rows import Message

if TYPE_CHECKING:
    from spa_recipes.data.chat import Renderer

Shape = tuple[tuple[tuple[str, bool], ...], bool]
"""Role of each message of a prompt, and whether it says anything; and whether answers follow."""

_QUESTION, _ANSWER = ("user", True), ("assistant", True)
_TRIED_BY_RENDERERS: set[Shape] = {((_QUESTION,), False), ((_QUESTION,), True), ((_QUESTION, _ANSWER), False)}


class Readable:
    """Tries whether a model's template and tokenizer can make tokens of a row.

    A template refuses sequences of roles, so of the rows that are alike in these one is tried; so is every row that
    holds more than texts, or words that look like a token of the tokenizer. A question and its answer is what a
    renderer tries when it is made: data of nothing else load no tokenizer, which takes seconds and half a gigabyte.

    Args:
        files: of the model.
        renderer: makes the renderer of the model's tokenizer.

    Attributes:
        looked_for: the words that look like a token; None where each row is tried.
    """

    def __init__(self, files: ModelFiles, renderer: Callable[[], Renderer]) -> None:
        self._make = renderer
        self._renderer: Renderer | None = None
        self._tried: set[Shape] = set(_TRIED_BY_RENDERERS)
        vocabulary = files.vocabulary()
        rows = embeddings_of(files.read("config.json"))
        # Tokens without an embedding may be in any text, and a tokenizer that is not known in any way, too.
        alike = bool(vocabulary) and (rows is None or max(vocabulary.values()) < rows)
        words = [word for word in files.added_tokens() if word.strip()]
        self.looked_for = words if alike else None
        self._marks = frozenset(word[0] for word in words)
        self._word = re.compile("|".join(map(re.escape, words)) or r"(?!)")

    def __call__(self, messages: Sequence[Message], answers: Sequence[str] = ()) -> None:
        """Raise DataError where no tokens can be made of a prompt, or of a conversation, with answers to it."""
        shape = (tuple((message["role"], bool(message["content"])) for message in messages), bool(answers))
        alike = self.looked_for is not None and all(len(message) == 2 for message in messages)
        if alike and shape in self._tried and not self._hold_tokens(messages, answers):
            return
        if self._renderer is None:
            self._renderer = self._make()
        if messages[-1]["role"] == "assistant":
            self._renderer.conversation(messages)
        elif answers:
            self._renderer.render_given(messages, answers)
        else:
            self._renderer.render_prompt(messages)
        self._tried.add(shape)

    def _hold_tokens(self, messages: Sequence[Message], answers: Sequence[str]) -> bool:
        texts = [*(message["content"] for message in messages), *answers]
        # Few texts hold the character that such words begin with, which is found much faster.
        return any(any(mark in text for mark in self._marks) and self._word.search(text) for text in texts)
