"""From messages to token ids: every stage renders its prompts and responses here."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from spa_recipes.data.rows import Message
from spa_recipes.data.template import MAX_FILE_BYTES, render
from spa_recipes.errors import DataError, SpaError, TryAgainError, system_error
from spa_recipes.state.patience import NOT_THERE
from spa_recipes.state.reading import read_text

_PROBE = "SPAPROBE"


class Rendered(NamedTuple):
    """Token ids, and whether some were cut off."""

    ids: list[int]
    cut: bool


class Conversation(NamedTuple):
    """A whole conversation; `response_mask` is 1 on the tokens that the model has to produce."""

    input_ids: list[int]
    response_mask: list[int]


class _Prompt(NamedTuple):
    """A prompt as the template writes it; `ids` are uncut."""

    messages: list[dict[str, Any]]
    text: str
    ids: list[int]


class Renderer:
    """Renders prompts and responses with the chat template of one tokenizer.

    - A prompt is the template's text with the generation prompt, tokenised without adding special tokens: the
      template writes those that it wants. A prompt longer than `max_prompt_length` keeps its last tokens.
    - A response is tokenised together with its (uncut) prompt, and its tokens are those after the prompt's. Where the
      tokenizer merges over that boundary, the response is tokenised alone.
    - A response ends with the end-of-turn token. One that does not fit `max_length` after its prompt loses its last
      tokens, the end-of-turn token among them.

    Args:
        tokenizer: a transformers tokenizer with a chat template.
        max_prompt_length: tokens of a prompt.
        max_length: tokens of prompt and response together.

    Raises:
        DataError: the template fails, or nothing ends a turn.
    """

    def __init__(self, tokenizer: Any, *, max_prompt_length: int, max_length: int) -> None:
        if not 0 < max_prompt_length < max_length:
            raise ValueError(f"need 0 < max_prompt_length < max_length, not {max_prompt_length}, {max_length}")
        self.tokenizer = tokenizer
        self.max_prompt_length = max_prompt_length
        self.max_length = max_length
        self.end_of_turn_id: int = _find_end_of_turn(tokenizer)
        self._last_prompt: _Prompt | None = None

    @cached_property
    def stop_ids(self) -> list[int]:
        """Tokens at which generation stops: the end of the turn, and the tokenizer's eos."""
        eos = self.tokenizer.eos_token_id
        return [self.end_of_turn_id] if eos in (None, self.end_of_turn_id) else [self.end_of_turn_id, eos]

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a prompt, ready for a response to follow."""
        return self.render_prompt(messages).ids

    def response_ids(self, messages: Sequence[Message], text: str) -> list[int]:
        """Token ids of a response to the prompt `messages`, end of turn included where it fits."""
        return self.render_response(messages, text).ids

    def render_prompt(self, messages: Sequence[Message]) -> Rendered:
        """`prompt_ids`, and whether the prompt lost its beginning."""
        ids = self._prompt(messages).ids
        return Rendered(ids[-self.max_prompt_length :], len(ids) > self.max_prompt_length)

    def render_response(self, messages: Sequence[Message], text: str) -> Rendered:
        """`response_ids`, and whether the response lost its end."""
        prompt = self._prompt(messages)
        ids = self._encode_response(prompt, text)
        room = self.max_length - min(len(prompt.ids), self.max_prompt_length)
        return Rendered(ids[:room], len(ids) > room)

    def conversation(self, messages: Sequence[Message]) -> Conversation:
        """Token ids of a conversation that ends with the assistant, every assistant turn in the mask.

        The ids are those of the last turn's uncut prompt and response. An earlier assistant turn is in the mask where
        its own prompt and response are found unchanged at the start of these ids; where a template shows
        earlier turns in another way, these are context only. A conversation that is too long loses its end.
        """
        if not messages or messages[-1]["role"] != "assistant":
            raise DataError("a conversation to learn from must end with the assistant")
        turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        ids, start = self._turn(messages, turns[-1])
        mask = [0] * start + [1] * (len(ids) - start)
        for index in turns[:-1]:
            turn, start = self._turn(messages, index)
            # A template may end a turn with plain text: then only the last turn has the end-of-turn token.
            for end in (len(turn), len(turn) - 1):
                if ids[:end] == turn[:end]:
                    mask[start:end] = [1] * (end - start)
                    break
        return Conversation(ids[: self.max_length], mask[: self.max_length])

    def decode(self, response_ids: Sequence[int]) -> str:
        """Text of a response up to the end of the turn, without special tokens."""
        ids = list(response_ids)
        for stop in self.stop_ids:
            if stop in ids:
                ids = ids[: ids.index(stop)]
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _turn(self, messages: Sequence[Message], index: int) -> tuple[list[int], int]:
        """Uncut ids of the turn at `index` with its prompt, and where its response begins."""
        prompt = self._prompt(messages[:index])
        return prompt.ids + self._encode_response(prompt, messages[index]["content"]), len(prompt.ids)

    def _prompt(self, messages: Sequence[Message]) -> _Prompt:
        """The prompt, rendered once for consecutive calls with it, such as those for its responses."""
        last = self._last_prompt
        if last is None or last.messages != list(messages):
            text = _apply_template(self.tokenizer, messages)
            last = _Prompt([dict(message) for message in messages], text, self._encode(text))
            self._last_prompt = last
        return last

    def _encode_response(self, prompt: _Prompt, text: str) -> list[int]:
        together = self._encode(prompt.text + text)
        length = len(prompt.ids)
        ids = together[length:] if together[:length] == prompt.ids else self._encode(text)
        return [*ids, self.end_of_turn_id]

    def _encode(self, text: str) -> list[int]:
        return _tokenise(self.tokenizer, text)


def load_tokenizer(
    path: str | Path, *, revision: str | None = None, trust_remote_code: bool = False, chat_template: str | None = None
) -> Any:
    """Load a tokenizer that can render chats and pad.

    Args:
        path: a local folder, which never touches the network, or a Hub id.
        revision: branch, tag or commit on the Hub.
        trust_remote_code: run code that comes with the tokenizer.
        chat_template: file with a Jinja template that replaces the tokenizer's own.

    Raises:
        DataError: there is no such tokenizer, or it has no chat template.
        TryAgainError: the network failed.
    """
    from transformers import AutoTokenizer

    name = str(Path(path).expanduser()) if str(path).startswith("~") else str(path)
    local = is_model_folder(name)
    if not local and is_path(name):
        raise DataError("no such model folder", where=name, fix="check model.model_name_or_path")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name, revision=revision, trust_remote_code=trust_remote_code, local_files_only=local
        )
    except Exception as error:  # transformers and the Hub client raise errors of any kind
        raise _load_error(name, local, error) from error
    if chat_template is not None:
        tokenizer.chat_template = _read_template(chat_template)
    if not tokenizer.chat_template:
        raise DataError(
            "the tokenizer has no chat template", where=name, fix="name a file with one in model.chat_template"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def conversation_ids(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Token ids of a whole conversation as the tokenizer's chat template writes it: what a foreign model reads.

    Raises:
        DataError: the template fails.
    """
    return _tokenise(tokenizer, _apply_template(tokenizer, messages, generation_prompt=False))


def _apply_template(tokenizer: Any, messages: Sequence[Message], generation_prompt: bool = True) -> str:
    try:
        return render(
            lambda: tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=generation_prompt
            )
        )
    except Exception as error:  # a template is a program: it can fail in any way
        roles = ", ".join(message["role"] for message in messages)
        raise DataError(
            f"the chat template fails on a conversation of {roles}: {str(error) or type(error).__name__}",
            fix="change the data or the template",
        ) from error


def _tokenise(tokenizer: Any, text: str) -> list[int]:
    # verbose=False: no warning about a text beyond the tokenizer's model_max_length, as this class cuts it.
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _find_end_of_turn(tokenizer: Any) -> int:
    """The first special token that the template writes after an assistant's words; else the tokenizer's eos."""
    exchange: list[Message] = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": _PROBE}]
    _, found, tail = _apply_template(tokenizer, exchange, generation_prompt=False).rpartition(_PROBE)
    if not found:
        raise DataError("the chat template does not show the assistant's words", fix="set another model.chat_template")
    special = set(tokenizer.all_special_ids)
    special |= {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    # unk stands for text that the tokenizer cannot read; it ends nothing.
    special.discard(tokenizer.unk_token_id if tokenizer.unk_token_id != tokenizer.eos_token_id else None)
    for token in _tokenise(tokenizer, tail):
        if token in special:
            return token
    if tokenizer.eos_token_id is None:
        raise DataError(
            "nothing ends a turn: the chat template writes no special token after an assistant's words, and the "
            "tokenizer has no eos token",
            fix="use a template that ends a turn (model.chat_template), or give the tokenizer an eos token",
        )
    eos: int = tokenizer.eos_token_id
    return eos


def is_model_folder(name: str) -> bool:
    """Whether a name is that of a folder on this disk, whose files can be opened.

    Raises:
        DataError: it is one, and they cannot be; libraries would take it for a Hub id. TryAgainError: the disk fails.
    """
    try:
        with os.scandir(name) as entries:
            for path in [Path(entry.path) for entry in entries if entry.is_file()]:
                path.open("rb").close()
    except ValueError:  # a NUL is in it
        return False
    except OSError as error:
        if error.errno in NOT_THERE:
            return False
        fix = "make the folder and its files readable for yourself"
        raise system_error(error, place=name, fix=fix) from None
    return True


def is_path(name: str) -> bool:
    """Whether a name can only be a path: a Hub id is `name` or `owner/name`."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name or Path(name).exists()


def _read_template(path: str) -> str:
    try:
        return read_text(Path(path).expanduser(), limit=MAX_FILE_BYTES)
    except (OSError, ValueError) as error:
        raise DataError(
            f"the chat template cannot be read ({error})", where=path, fix="check model.chat_template"
        ) from error


def _load_error(name: str, local: bool, error: Exception) -> SpaError:
    if isinstance(error, MemoryError):
        return TryAgainError("out of memory while loading the tokenizer", where=name)
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if local:
        return DataError(f"no usable tokenizer in this folder ({reason})", where=name)
    from spa_recipes.data.hub import hub_error

    return hub_error("model", name, error)
