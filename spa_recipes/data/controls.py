"""Control tokens are what a template writes: the same words in what somebody wrote are text, and encoded as text."""

import copy
import re
from collections.abc import Sequence
from typing import Any

from spa_recipes.data.rows import Message
from spa_recipes.errors import DataError

EMBEDDINGS = "embeddings"
"""Attribute of a tokenizer: how many tokens the model beside it has an embedding for; None where it does not say."""

GIVE_EMBEDDINGS = "call model.resize_token_embeddings(len(tokenizer)), train the new tokens, and save the model again"
"""What to do about tokens without an embedding."""

_FIRST = 0xF0000
"""The first of the private characters that stand for control tokens while a text is rendered; no text has them."""


class Controls:
    """Hides words that look like control tokens from a template, and tells them from the template's own afterwards.

    A placeholder is as long as what it stands for, so places in a rendered text stay what they are.

    Args:
        tokenizer: a transformers tokenizer.
        ids: the control tokens.
    """

    def __init__(self, tokenizer: Any, ids: set[int]) -> None:
        self.tokenizer = tokenizer
        added = {index: str(token.content) for index, token in tokenizer.added_tokens_decoder.items()}
        self.words = {index: added.get(index) or str(tokenizer.convert_ids_to_tokens(index)) for index in sorted(ids)}
        # The longest first: one may begin like another.
        ordered = sorted(self.words.values(), key=lambda word: (-len(word), word))
        self._hidden = {word: chr(_FIRST + 2 * i) * len(word) for i, word in enumerate(ordered)}
        self._own = {word: chr(_FIRST + 2 * i + 1) * len(word) for i, word in enumerate(ordered)}
        self._word = re.compile("|".join(map(re.escape, ordered)) or r"(?!)")
        self._private = re.compile(f"[{chr(_FIRST)}-{chr(_FIRST + 2 * len(ordered))}]")
        self._backend: tuple[Any, dict[int, int]] | None = None
        self._embeddings: int | None = getattr(tokenizer, EMBEDDINGS, None)
        if self._embeddings is not None and max(tokenizer.get_vocab().values(), default=0) < self._embeddings:
            self._embeddings = None  # all tokens have one: none is looked at

    def hide(self, messages: Sequence[Message]) -> list[Any]:
        """The messages with placeholders for control tokens in whatever was written; roles stay as they are."""
        return [{key: value if key == "role" else self._hide(value) for key, value in m.items()} for m in messages]

    def _hide(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._word.sub(lambda found: self._hidden[found[0]], value)
        if isinstance(value, dict):
            return {key: self._hide(inner) for key, inner in value.items()}
        return [self._hide(inner) for inner in value] if isinstance(value, list | tuple) else value

    def encode(self, rendered: str) -> list[int]:
        """Token ids of a rendered text; what was hidden is text.

        Raises:
            DataError: this tokenizer has no tokens for a control token's words but the control token itself, or the
                model has no embedding for a token of the text.
        """
        if self._private.search(rendered):
            return self.encode_with_places(rendered)[0]
        return self._known(self._plain(rendered))

    def encode_with_places(self, rendered: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids, and the characters [start, end) of the rendered text that each stands for; as `encode`."""
        if not hasattr(self.tokenizer, "backend_tokenizer"):
            raise DataError(
                f"{type(self.tokenizer).__name__} cannot encode the words of a control token as text",
                fix="take them out of the data, or give the model a tokenizer.json",
            )
        if self._backend is None:
            self._backend = self._without_controls()
        backend, own = self._backend
        text = self._word.sub(lambda found: self._own[found[0]], rendered)
        for word, hidden in self._hidden.items():
            text = text.replace(hidden, word)
        encoding = backend.encode(text, add_special_tokens=False)
        wrong = next((index for index in encoding.ids if index in self.words), None)
        if wrong is not None:
            raise DataError(
                f"this tokenizer can read `{self.words[wrong]}` as a control token only",
                fix="take it out of the data",
            )
        return self._known([own.get(index, index) for index in encoding.ids]), encoding.offsets

    def _known(self, ids: list[int]) -> list[int]:
        """The ids, for all of which the model has an embedding."""
        if self._embeddings is not None and max(ids, default=0) >= self._embeddings:
            beyond = max(ids)
            word = self.tokenizer.convert_ids_to_tokens(beyond)
            raise DataError(
                f"`{word}` is token {beyond} of the tokenizer, and the model has {self._embeddings} embeddings",
                fix=f"take it out of the data, or {GIVE_EMBEDDINGS}",
            )
        return ids

    def _plain(self, rendered: str) -> list[int]:
        # verbose=False: no warning about a text beyond the tokenizer's model_max_length; the renderer cuts it.
        ids: list[int] = self.tokenizer(rendered, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _without_controls(self) -> tuple[Any, dict[int, int]]:
        """The tokenizer with other words for its control tokens, and which token each of these is."""
        from tokenizers import AddedToken

        backend = copy.deepcopy(self.tokenizer.backend_tokenizer)
        backend.no_truncation()
        backend.no_padding()
        flags = self.tokenizer.added_tokens_decoder
        own = {}
        for index, word in self.words.items():
            backend.add_special_tokens([AddedToken(word, special=True)])  # one that was no special token becomes one
            known = flags.get(index)
            sides = {"lstrip": known.lstrip, "rstrip": known.rstrip} if known is not None else {}
            backend.add_tokens([AddedToken(self._own[word], normalized=False, special=False, **sides)])
            own[backend.token_to_id(self._own[word])] = index
        backend.encode_special_tokens = True
        return backend, own
