"""From messages to token ids: every stage renders its prompts and responses here."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from spa_recipes.data.controls import EMBEDDINGS, Controls
from spa_recipes.data.model_files import ModelFiles, embeddings_of
from spa_recipes.data.rows import Message
from spa_recipes.data.template import MAX_FILE_BYTES
from spa_recipes.data.templating import apply, apply_marked, marks_answers
from spa_recipes.errors import DataError, SpaError, TryAgainError, system_error
from spa_recipes.state.patience import NOT_THERE
from spa_recipes.state.reading import read_text

_PROBE = "SPAPROBE"


class Rendered(NamedTuple):
    """Token ids, and whether some were cut off."""

    ids: list[int]
    cut: bool


class Given(NamedTuple):
    """A prompt and answers to it that somebody gave."""

    prompt: Rendered
    answers: list[Rendered]


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
    """Renders prompts, answers and conversations with the chat template of one tokenizer.

    - A prompt to be answered is the template's text with the generation prompt, tokenised without adding special
      tokens: the template writes those that it wants. A prompt longer than `max_prompt_length` keeps its last tokens.
    - An answer that somebody gave is rendered with its whole conversation, as the template shows it: with the space,
      trimmed, or with the empty block of thoughts that the template writes. Its tokens are those behind the prompt's,
      up to the end of its turn; what a template writes behind that end is no part of it. Where the conversation does
      not begin with the prompt's tokens, the answer begins where the two part, and a notice says so.
    - A template that writes nothing at the end of a turn gets the end-of-turn token behind the answer.
    - An answer that does not fit `max_length` after its prompt loses its last tokens, the end of turn among them.
    - What somebody wrote is text: words in it that look like control tokens become none. One end of turn that an
      answer ends with is removed and counted.

    Attributes:
        end_of_turn_id: the token that ends an assistant's turn.
        stop_ids: all tokens at which sampling stops: those of template, tokenizer and generation_config.json.
        removed_ends: answers that ended with an end of turn of their own so far.

    Args:
        tokenizer: a tokenizer of `load_tokenizer`, or another one with a chat template.
        max_prompt_length: tokens of a prompt.
        max_length: tokens of prompt and answer together.
        template_kwargs: variables that the template gets, such as `enable_thinking`.
        notice: called once with what a person should know about the template.

    Raises:
        DataError: the template fails, or nothing ends a turn.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        max_prompt_length: int,
        max_length: int,
        template_kwargs: Mapping[str, Any] | None = None,
        notice: Callable[[str], None] = print,
    ) -> None:
        if not 0 < max_prompt_length < max_length:
            raise ValueError(f"need 0 < max_prompt_length < max_length, not {max_prompt_length}, {max_length}")
        self.tokenizer = tokenizer
        self.max_prompt_length = max_prompt_length
        self.max_length = max_length
        self.removed_ends = 0
        self._template_kwargs = dict(template_kwargs or {})
        self._notice: Callable[[str], None] | None = notice
        self._last_prompt: _Prompt | None = None
        named = [index for index in getattr(tokenizer, NAMED_ENDS, []) if tokenizer.convert_ids_to_tokens(index)]
        self.end_of_turn_id, self._tail = self._find_end_of_turn(named)
        eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        self.stop_ids: list[int] = list(dict.fromkeys([self.end_of_turn_id, *eos, *named]))
        added = tokenizer.added_tokens_decoder
        controls = special_ids(tokenizer) | {self.end_of_turn_id} | {index for index in self.stop_ids if index in added}
        self._controls = Controls(tokenizer, controls)
        end = self._controls.words[self.end_of_turn_id]
        self._end = end if end in self._tail else None
        ends = "|".join(re.escape(self._controls.words[i]) for i in self.stop_ids if i in self._controls.words)
        self._own_end = re.compile(rf"(?:{ends})\s*\Z")

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a prompt, ready for a response to follow."""
        return self.render_prompt(messages).ids

    def response_ids(self, messages: Sequence[Message], text: str) -> list[int]:
        """Token ids of a response to the prompt `messages`, end of turn included where it fits."""
        return self.render_response(messages, text).ids

    def render_prompt(self, messages: Sequence[Message]) -> Rendered:
        """`prompt_ids`, and whether the prompt lost its beginning."""
        return self._cut_prompt(self._prompt(messages).ids)

    def render_response(self, messages: Sequence[Message], text: str) -> Rendered:
        """`response_ids`, and whether the response lost its end."""
        return self.render_given(messages, [text]).answers[0]

    def render_given(self, messages: Sequence[Message], texts: Sequence[str]) -> Given:
        """A prompt and answers to it, all behind the same prompt."""
        prompt_ids, answers = self._given(messages, [{"role": "assistant", "content": text} for text in texts])
        prompt = self._cut_prompt(prompt_ids)
        room = self.max_length - len(prompt.ids)
        return Given(prompt, [Rendered(ids[:room], len(ids) > room) for ids in answers])

    def conversation(self, messages: Sequence[Message]) -> Conversation:
        """Token ids of a conversation that ends with the assistant, every assistant turn in the mask.

        The mask is the template's own where it marks what the assistant wrote by `{% generation %}`. Otherwise the
        ids are those of the last turn's uncut prompt and answer. An earlier assistant turn is in the mask where
        its own prompt and answer are found unchanged at the start of these ids; where a template shows
        earlier turns in another way, these are context only, as turns of weight 0 are. A conversation that is too
        long loses its end.
        """
        if not messages or messages[-1]["role"] != "assistant":
            raise DataError("a conversation to learn from must end with the assistant")
        if marks_answers(self.tokenizer):
            ids, mask = self._marked(messages)
            return Conversation(ids[: self.max_length], mask[: self.max_length])
        turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        ids, start = self._turn(messages, turns[-1])
        mask = [0] * start + [int(_is_learned(messages[-1]))] * (len(ids) - start)
        for index in (index for index in turns[:-1] if _is_learned(messages[index])):
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

    def _cut_prompt(self, ids: list[int]) -> Rendered:
        return Rendered(ids[-self.max_prompt_length :], len(ids) > self.max_prompt_length)

    def _prompt(self, messages: Sequence[Message]) -> _Prompt:
        """The prompt, rendered once for consecutive calls with it, such as those for its responses."""
        last = self._last_prompt
        if last is None or last.messages != list(messages):
            text = self._apply(self._controls.hide(messages))
            last = _Prompt([dict(message) for message in messages], text, self._controls.encode(text))
            self._last_prompt = last
        return last

    # --- answers that somebody gave

    def _given(self, messages: Sequence[Message], answers: Sequence[Message]) -> tuple[list[int], list[list[int]]]:
        """Uncut ids of a prompt and of answers to it."""
        prompt = self._prompt(messages)
        wholes = [self._whole([*messages, self._without_end(answer)]) for answer in answers]
        encoded = [self._ended(whole) for whole in wholes]
        shared = min(_shared(prompt.ids, ids) for ids in encoded)
        if shared == len(prompt.ids):
            return prompt.ids, [ids[shared:] for ids in encoded]
        bare = self._controls.encode(self._apply(self._controls.hide(messages), generation_prompt=False))
        if shared >= _shared(bare, prompt.ids) - 1:  # a token may reach over the end of the last message
            self._say(
                "the chat template begins a given answer in another way than an answer that is sampled: given ones are "
                f"read without the end of the prompt, {self.tokenizer.decode(prompt.ids[shared:])!r}"
            )
            return prompt.ids[:shared], [ids[shared:] for ids in encoded]
        start = self._start_of_answer(messages, prompt)
        self._say(
            "the chat template shows earlier messages in another way when an answer follows: given answers are read "
            "behind the prompt as it is sampled from"
        )
        return prompt.ids, [self._behind(prompt, whole[start:]) for whole in wholes]

    def _start_of_answer(self, messages: Sequence[Message], prompt: _Prompt) -> int:
        """Where an answer begins in a conversation that shows earlier messages otherwise: behind the last one.

        Raises:
            DataError: the last message is not found there as the prompt shows it.
        """
        hidden = self._controls.hide(messages)
        last = hidden[-1]["content"].strip() if isinstance(hidden[-1]["content"], str) else ""
        end_of_prompt = prompt.text[prompt.text.rfind(last) :]
        before, _, _ = self._apply(
            [*hidden, {"role": "assistant", "content": _PROBE}], generation_prompt=False
        ).partition(_PROBE)
        found = before.rfind(end_of_prompt)
        if not last or found < 0:
            raise DataError(
                "the chat template shows a prompt in another way when an answer follows, so the answer's own tokens "
                "cannot be told",
                fix="set another model.chat_template, or model.chat_template_kwargs",
            )
        return found + len(end_of_prompt)

    def _behind(self, prompt: _Prompt, text: str) -> list[int]:
        together = self._ended(prompt.text + text)
        length = len(prompt.ids)
        return together[length:] if together[:length] == prompt.ids else self._ended(text)

    def _whole(self, messages: Sequence[Message]) -> str:
        """A conversation up to the end of its last turn, as the template shows it."""
        whole = self._apply(self._controls.hide(messages), generation_prompt=False)
        if self._end is None:
            return whole.removesuffix(self._tail)
        return whole[: whole.rfind(self._end) + len(self._end)]

    def _ended(self, text: str) -> list[int]:
        """Token ids of a text, with the end of the turn."""
        ids = self._controls.encode(text)
        return ids if self._end is not None else [*ids, self.end_of_turn_id]

    def _without_end(self, answer: Message) -> Message:
        """An answer without the end of turn that it ends with; one of them is removed."""
        found = self._own_end.search(answer["content"])
        if found is None:
            return answer
        self.removed_ends += 1
        return {**answer, "content": answer["content"][: found.start()]}

    # --- conversations

    def _turn(self, messages: Sequence[Message], index: int) -> tuple[list[int], int]:
        """Uncut ids of the turn at `index` with its prompt, and where its response begins."""
        prompt_ids, (answer,) = self._given(messages[:index], [messages[index]])
        return prompt_ids + answer, len(prompt_ids)

    def _marked(self, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
        """Ids and mask of a conversation whose template marks the assistant's words, up to the last of them."""
        turns = [message for message in messages if message["role"] == "assistant"]
        hidden = self._controls.hide([self._without_end(m) if m["role"] == "assistant" else m for m in messages])
        text, spans = apply_marked(self.tokenizer, hidden, self._template_kwargs)
        if not all(map(_is_learned, turns)):
            if len(spans) != len(turns):
                raise DataError(
                    f"the chat template marks {len(spans)} answers of a conversation that has {len(turns)}, so that "
                    "those of weight 0 cannot be told",
                    fix="leave the weights out, or set another model.chat_template",
                )
            spans = [span for span, turn in zip(spans, turns, strict=True) if _is_learned(turn)]
        ids, places = self._controls.encode_with_places(text)
        mask = [int(any(start < end_ and begin < end for begin, end_ in spans)) for start, end in places]
        last = max((i for i, marked in enumerate(mask) if marked), default=-1)
        return ids[: last + 1], mask[: last + 1]

    # --- the template

    def _apply(self, messages: Sequence[Message], generation_prompt: bool = True) -> str:
        return apply(self.tokenizer, messages, generation_prompt, self._template_kwargs)

    def _say(self, text: str) -> None:
        if self._notice is not None:
            self._notice(text)
            self._notice = None

    def _find_end_of_turn(self, named: Sequence[int]) -> tuple[int, str]:
        """The token that ends an assistant's turn, and all that the template writes behind the words of one.

        It is the first control token behind them; else the one that begins the user's next turn, if the model's makers
        name it as an end; else the tokenizer's eos.
        """
        tokenizer = self.tokenizer
        exchange: list[Message] = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": _PROBE}]
        _, found, tail = self._apply(exchange, generation_prompt=False).rpartition(_PROBE)
        if not found:
            raise DataError(
                "the chat template does not show the assistant's words", fix="set another model.chat_template"
            )
        added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.content.strip()}
        # unk stands for text that the tokenizer cannot read; it ends nothing.
        unknown = {tokenizer.unk_token_id} - {tokenizer.eos_token_id}
        control = (special_ids(tokenizer) | added | set(named)) - unknown
        for token in _tokenise(tokenizer, tail):
            if token in control:
                return token, tail
        eos: int | None = tokenizer.eos_token_id
        with suppress(DataError):  # a template may know one exchange only
            more = self._apply([*exchange, exchange[0]], generation_prompt=False).rpartition(_PROBE)[2]
            first = _tokenise(tokenizer, more.removeprefix(tail))[:1]
            if first and first[0] in {*named, eos}:
                return first[0], tail
        if eos is None:
            raise DataError(
                "nothing ends a turn: the chat template writes no special token after an assistant's words, and the "
                "tokenizer has no eos token",
                fix="use a template that ends a turn (model.chat_template), or give the tokenizer an eos token",
            )
        return eos, tail


def special_ids(tokenizer: Any) -> set[int]:
    """The special tokens of a tokenizer; not the one that stands for text it cannot read."""
    marked = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return (marked | set(tokenizer.all_special_ids)) - ({tokenizer.unk_token_id} - {tokenizer.eos_token_id})


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two texts begin with alike."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


NAMED_ENDS = "named_ends"
"""Attribute of a tokenizer: the ends that generation_config.json names beside it."""


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
    if not local:
        revision = ModelFiles(name, revision).at_commit().revision
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
    setattr(tokenizer, NAMED_ENDS, _named_ends(name, revision, local=local))
    setattr(tokenizer, EMBEDDINGS, embeddings_of(ModelFiles(name, revision).read("config.json")))
    return tokenizer


def _is_learned(answer: Message) -> bool:
    return answer.get("weight") != 0


def _tokenise(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _named_ends(name: str, revision: str | None, *, local: bool) -> list[int]:
    """The ends that generation_config.json names beside a tokenizer; none where there is no such file."""
    from transformers.utils import cached_file

    try:
        found = cached_file(
            name, "generation_config.json", revision=revision, local_files_only=local,
            _raise_exceptions_for_missing_entries=False,
        )  # fmt: skip
    except Exception as error:  # the Hub's client raises errors of any kind
        raise _load_error(name, local, error) from error
    try:
        named = None if found is None else json.loads(read_text(Path(found), limit=MAX_FILE_BYTES)).get("eos_token_id")
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"generation_config.json cannot be read ({error})", where=name, fix="save it again") from error
    ends = named if isinstance(named, list) else [named]
    return [end for end in ends if isinstance(end, int)]


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
