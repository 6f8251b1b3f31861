"""The forms in which preference data comes, and their translation to canonical rows. Standard library only.

A form is told by its columns and the kinds of their values. All rows of a dataset must have the form of the first
ones; what differs, or is malformed, is a `BadRowError`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from spa_recipes.data.rows import CandidatesRow, ConversationRow, Message, PairRow, PromptRow, prompt_id
from spa_recipes.recipe.schema import Columns

Raw = Mapping[str, Any]
Kind = Literal["text", "messages", "message", "texts", "empty list", "null", "other"]

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
}
_KIND_NAMES: dict[Kind, str] = {
    "text": "a string",
    "messages": "a list of messages",
    "message": "a message",
    "texts": "a list of strings",
    "empty list": "an empty list",
    "null": "null",
    "other": "neither text nor messages",
}
# The first name that a row has wins; later ones are those of other datasets.
_SCORES = {
    "score_chosen": ("score_chosen", "chosen_score", "chosen-rating", "chosen_rating"),
    "score_rejected": ("score_rejected", "rejected_score", "rejected-rating", "rejected_rating"),
    "gold_chosen": ("gold_chosen",),
    "gold_rejected": ("gold_rejected",),
}


class BadRowError(Exception):
    """What is wrong with one row."""


class Pair(NamedTuple):
    """A prompt and two responses, not checked yet."""

    prompt: list[Message]
    chosen: str
    rejected: str


class Form(NamedTuple):
    """A form: the kinds of the columns that it needs, and how its rows are read.

    `without` names columns that belong to other forms and must not hold anything; `optional` ones are used if there.
    """

    name: str
    needs: dict[str, tuple[Kind, ...]]
    parse: Callable[[Raw], Any]
    optional: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

    def mismatch(self, row: Raw) -> str:
        """Say why a row does not have this form; empty where it has."""
        for column, kinds in self.needs.items():
            if column not in row:
                return f"no column `{column}`"
            kind = kind_of(row[column])
            if kind == "null":
                return f"`{column}` is null"
            if kind not in kinds and not (kind == "empty list" and {"messages", "texts"} & set(kinds)):
                expected = " or ".join(_KIND_NAMES[kind] for kind in kinds)
                return f"`{column}` is {_KIND_NAMES[kind]}, where {expected} is expected ({self.name})"
        for column in self.without:
            if row.get(column) is not None:
                return f"`{column}` is set, but the first rows have none ({self.name})"
        return ""

    def columns(self, row: Raw) -> list[str]:
        """The columns that are read of a row like this one."""
        return [*self.needs, *(column for column in self.optional if row.get(column) not in (None, "", []))]


def kind_of(value: Any) -> Kind:
    """Classify a value by what it can mean."""
    if value is None:
        return "null"
    if isinstance(value, str):
        return "text"
    if isinstance(value, Mapping):
        return _kind_of_mapping(value)
    if isinstance(value, list | tuple):
        if not value:
            return "empty list"
        if all(isinstance(item, str) for item in value):
            return "texts"
        if any(isinstance(item, Mapping) and _kind_of_mapping(item) == "message" for item in value):
            return "messages"
    return "other"


def detect(rows: Sequence[Raw], forms: Sequence[Form]) -> Form | None:
    """The form that most of these rows have; of two, that of the earlier row."""
    votes: Counter[int] = Counter()
    for row in rows:
        for index, form in enumerate(forms):
            if not form.mismatch(row):
                votes[index] += 1
                break
    return forms[votes.most_common(1)[0][0]] if votes else None


def describe(row: Raw) -> str:
    """Name the columns of a row and what they hold, for an error."""
    listed = [f"{column} ({_KIND_NAMES[kind_of(value)]})" for column, value in list(row.items())[:12]]
    return ", ".join(listed) + (", ..." if len(row) > 12 else "") if listed else "none"


def rename(row: Raw, columns: Columns, *, rivals: tuple[str, ...] = ()) -> Raw:
    """Give the columns that the recipe names their usual names.

    `rivals` are columns that would otherwise be taken for the prompt.
    """
    named = {usual: name for usual, name in columns.model_dump().items() if name is not None}
    if not named:
        return row
    out = {key: value for key, value in row.items() if key not in named.values()}
    if columns.prompt is not None:
        for rival in rivals:
            out.pop(rival, None)
    for usual, name in named.items():
        if name not in row:
            raise BadRowError(f"no column `{name}`, which `columns.{usual}` names")
        out[usual] = row[name]
    return out


# --- canonical rows


def pair_row(pair: Pair, raw: Raw, row: int) -> PairRow:
    """Check a pair and give it its canonical form."""
    check_prompt(pair.prompt)
    for name, text in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        _check_text(text, f"the {name} response")
    if pair.chosen == pair.rejected:
        raise BadRowError("the chosen response equals the rejected one")
    out: PairRow = {
        "prompt_id": prompt_id(pair.prompt),
        "prompt": pair.prompt,
        "chosen": [{"role": "assistant", "content": pair.chosen}],
        "rejected": [{"role": "assistant", "content": pair.rejected}],
        "row": row,
    }
    scores: dict[str, float] = {name: value for name in _SCORES if (value := _score(raw, name)) is not None}
    out.update(scores)  # type: ignore[typeddict-item]
    return out


def prompt_row(prompt: list[Message], row: int) -> PromptRow:
    """Check a prompt and give it its canonical form."""
    check_prompt(prompt)
    return {"prompt_id": prompt_id(prompt), "prompt": prompt, "row": row}


def conversation_row(messages: list[Message], row: int) -> ConversationRow:
    """Check a demonstration and give it its canonical form."""
    prompt, answer = split_answer(messages, "the conversation")
    check_prompt(prompt)
    _check_text(answer, "the last answer")
    return {"messages": messages, "row": row}


def candidates_row(prompt: list[Message], responses: list[str], label: int | None, row: int) -> CandidatesRow:
    """Check a prompt and its responses and give them their canonical form."""
    check_prompt(prompt)
    if len(responses) < 2:
        raise BadRowError(f"{len(responses)} response, where at least 2 are needed to judge")
    for index, text in enumerate(responses):
        _check_text(text, f"response {index + 1}")
    return {
        "prompt_id": prompt_id(prompt),
        "prompt": prompt,
        "responses": responses,
        "label": label if label is not None and 0 <= label < len(responses) else None,
        "row": row,
    }


def check_prompt(messages: Sequence[Message]) -> None:
    """A prompt has a system message at most in front, and ends with the user."""
    if not messages:
        raise BadRowError("there is no prompt before the answer")
    if messages[-1]["role"] != "user":
        raise BadRowError(f"the prompt ends with a message of {messages[-1]['role']}, not of user")
    for number, message in enumerate(messages, start=1):
        if message["role"] == "system" and number > 1:
            raise BadRowError(f"message {number} of the prompt is of system, which may only come first")
        # An empty system message means something: it replaces the template's default one.
        if message["role"] != "system":
            _check_text(message["content"], f"message {number} of the prompt")


def split_answer(messages: list[Message], name: str) -> tuple[list[Message], str]:
    """Take the assistant's last message off a conversation."""
    if not messages:
        raise BadRowError(f"{name} is empty")
    if messages[-1]["role"] != "assistant":
        raise BadRowError(f"{name} ends with a message of {messages[-1]['role']}, not of assistant")
    return messages[:-1], messages[-1]["content"]


def read_messages(value: Any, name: str) -> list[Message]:
    """Read messages in any of their notations: role/content, from/value, a single one, or columns of a struct."""
    if isinstance(value, Mapping):
        value = [value] if _kind_of_mapping(value) == "message" else _rows_of_struct(value, name)
    if not isinstance(value, list | tuple) or not value:
        raise BadRowError(f"`{name}` is {_KIND_NAMES[kind_of(value)]}, where a list of messages is expected")
    return [_message(item, f"message {number} of `{name}`") for number, item in enumerate(value, start=1)]


# --- pairs


def _parse_strings(row: Raw) -> Pair:
    return Pair([_user(row["prompt"])], row["chosen"], row["rejected"])


def _parse_list_prompt(row: Raw) -> Pair:
    return Pair(read_messages(row["prompt"], "prompt"), row["chosen"], row["rejected"])


def _parse_explicit(row: Raw) -> Pair:
    prompt = read_messages(row["prompt"], "prompt")
    return Pair(prompt, _completion(row, "chosen", prompt), _completion(row, "rejected", prompt))


def _parse_implicit(row: Raw) -> Pair:
    chosen = read_messages(row["chosen"], "chosen")
    rejected = read_messages(row["rejected"], "rejected")
    prompt, best = split_answer(chosen, "`chosen`")
    other, worst = split_answer(rejected, "`rejected`")
    if prompt != other:
        number = next((i for i, (a, b) in enumerate(zip(prompt, other, strict=False)) if a != b), None)
        at = f"at message {number + 1}" if number is not None else "in length"
        raise BadRowError(f"`chosen` and `rejected` differ before their last message ({at})")
    return Pair(prompt, best, worst)


def _parse_string_and_conversations(row: Raw) -> Pair:
    pair = _parse_implicit(row)
    if not pair.prompt:
        return pair._replace(prompt=[_user(row["prompt"])])
    said = [message["content"].strip() for message in pair.prompt if message["role"] == "user"]
    # Of several user turns, datasets name the first or the last one.
    if row["prompt"].strip() not in (said[:1] + said[-1:]):
        raise BadRowError("`prompt` is not what the user says in `chosen` and `rejected`")
    return pair


def _parse_sharegpt(row: Raw) -> Pair:
    prompt = _with_system(row, read_messages(row["conversations"], "conversations"))
    return Pair(prompt, _completion(row, "chosen", prompt), _completion(row, "rejected", prompt))


def _parse_alpaca(row: Raw) -> Pair:
    return Pair(_alpaca_prompt(row), row["chosen"], row["rejected"])


def _parse_alpaca_outputs(row: Raw) -> Pair:
    outputs = row["output"]
    if len(outputs) != 2:
        raise BadRowError(f"`output` holds {len(outputs)} responses, not 2")
    return Pair(_alpaca_prompt(row), outputs[0], outputs[1])


_TEXT: tuple[Kind, ...] = ("text",)
_MESSAGES: tuple[Kind, ...] = ("messages",)
_ALPACA_OPTIONAL = ("input", "system", "history")
PAIR_FORMS = (
    Form(
        "TRL explicit, strings",
        {"prompt": _TEXT, "chosen": _TEXT, "rejected": _TEXT},
        _parse_strings,
    ),
    Form(
        "TRL explicit, message lists",
        {"prompt": _MESSAGES, "chosen": _MESSAGES, "rejected": _MESSAGES},
        _parse_explicit,
    ),
    Form(
        "string prompt and whole conversations, as UltraFeedback",
        {"prompt": _TEXT, "chosen": _MESSAGES, "rejected": _MESSAGES},
        _parse_string_and_conversations,
    ),
    Form(
        "message-list prompt and string responses",
        {"prompt": _MESSAGES, "chosen": _TEXT, "rejected": _TEXT},
        _parse_list_prompt,
    ),
    Form(
        "ShareGPT pairs",
        {
            "conversations": _MESSAGES,
            "chosen": ("message", "messages", "text"),
            "rejected": ("message", "messages", "text"),
        },
        _parse_sharegpt,
        optional=("system",),
        without=("prompt",),
    ),
    Form(
        "Alpaca pairs",
        {"instruction": _TEXT, "chosen": _TEXT, "rejected": _TEXT},
        _parse_alpaca,
        optional=_ALPACA_OPTIONAL,
        without=("prompt", "conversations"),
    ),
    Form(
        "Alpaca pairs, output list",
        {"instruction": _TEXT, "output": ("texts",)},
        _parse_alpaca_outputs,
        optional=_ALPACA_OPTIONAL,
        without=("prompt", "conversations", "chosen", "rejected"),
    ),
    Form(
        "TRL implicit, whole conversations",
        {"chosen": _MESSAGES, "rejected": _MESSAGES},
        _parse_implicit,
        without=("prompt", "conversations", "instruction"),
    ),
)


# --- prompts, demonstrations, candidates


def _parse_prompt_string(row: Raw) -> list[Message]:
    return [_user(row["prompt"])]


def _parse_prompt_messages(row: Raw) -> list[Message]:
    return read_messages(row["prompt"], "prompt")


def _conversation_prompt(column: str) -> Callable[[Raw], list[Message]]:
    def parse(row: Raw) -> list[Message]:
        messages = _with_system(row, read_messages(row[column], column))
        return messages[:-1] if messages[-1]["role"] == "assistant" else messages

    return parse


def _pair_prompt(parse_pair: Callable[[Raw], Pair]) -> Callable[[Raw], list[Message]]:
    def parse(row: Raw) -> list[Message]:
        return parse_pair(row).prompt

    return parse


# Labelled pairs lend their prompts too; they come first, as `prompt` alone may miss the system message.
PROMPT_FORMS = (
    *(form._replace(name=f"prompts of {form.name}", parse=_pair_prompt(form.parse)) for form in PAIR_FORMS),
    Form("prompt strings", {"prompt": _TEXT}, _parse_prompt_string),
    Form("prompt message lists", {"prompt": _MESSAGES}, _parse_prompt_messages),
    Form("conversations", {"messages": _MESSAGES}, _conversation_prompt("messages"), optional=("system",)),
    Form(
        "ShareGPT conversations",
        {"conversations": _MESSAGES},
        _conversation_prompt("conversations"),
        optional=("system",),
        without=("messages",),
    ),
)


def _parse_conversation(column: str) -> Callable[[Raw], list[Message]]:
    def parse(row: Raw) -> list[Message]:
        return _with_system(row, read_messages(row[column], column))

    return parse


def _parse_prompt_completion(row: Raw) -> list[Message]:
    prompt = [_user(row["prompt"])] if isinstance(row["prompt"], str) else read_messages(row["prompt"], "prompt")
    return [*prompt, {"role": "assistant", "content": _completion(row, "completion", prompt)}]


CONVERSATION_FORMS = (
    Form("conversations", {"messages": _MESSAGES}, _parse_conversation("messages"), optional=("system",)),
    Form(
        "ShareGPT conversations",
        {"conversations": _MESSAGES},
        _parse_conversation("conversations"),
        optional=("system",),
        without=("messages",),
    ),
    Form(
        "prompt and completion",
        {"prompt": ("text", "messages"), "completion": ("text", "messages")},
        _parse_prompt_completion,
        without=("messages", "conversations"),
    ),
)


class Candidates(NamedTuple):
    """A prompt and its responses, not checked yet; `label` None where only a label column can tell."""

    prompt: list[Message]
    responses: list[str]
    label: int | None


def _parse_responses(row: Raw) -> Candidates:
    prompt = _any_prompt(row)
    responses = row["responses"]
    if kind_of(responses) == "messages":
        messages = read_messages(responses, "responses")
        if any(message["role"] != "assistant" for message in messages):
            raise BadRowError("`responses` holds a message that is not of assistant")
        responses = [message["content"] for message in messages]
    return Candidates(prompt, list(responses), None)


def _parse_two_responses(row: Raw) -> Candidates:
    prompt = _any_prompt(row)
    return Candidates(prompt, [_completion(row, name, prompt) for name in ("response_a", "response_b")], None)


def _labelled(parse_pair: Callable[[Raw], Pair]) -> Callable[[Raw], Candidates]:
    def parse(row: Raw) -> Candidates:
        pair = parse_pair(row)
        return Candidates(pair.prompt, [pair.chosen, pair.rejected], 0)

    return parse


_LABEL_COLUMNS = ("label", "preference")
CANDIDATE_FORMS = (
    Form(
        "prompt and responses",
        {"prompt": ("text", "messages"), "responses": ("texts", "messages")},
        _parse_responses,
        optional=_LABEL_COLUMNS,
    ),
    Form(
        "prompt, response_a and response_b",
        {"prompt": ("text", "messages"), "response_a": ("text", "messages"), "response_b": ("text", "messages")},
        _parse_two_responses,
        optional=_LABEL_COLUMNS,
    ),
    *(form._replace(parse=_labelled(form.parse)) for form in PAIR_FORMS),
)


def read_labels(rows: Sequence[Raw]) -> list[int | None]:
    """Which of two responses a label column prefers, where its meaning is beyond doubt.

    `a` and `b` (or `response_a`, ...) name the response; numbers count from 0 where a 0 occurs and from 1 where a 2
    occurs. Anything else is no label.
    """
    for column in _LABEL_COLUMNS:
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


# --- pieces


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


def _kind_of_mapping(value: Mapping[str, Any]) -> Kind:
    if ("role" in value and "content" in value) or ("from" in value and "value" in value):
        parts = (value.get("role", value.get("from")), value.get("content", value.get("value")))
        return "messages" if all(isinstance(part, list | tuple) for part in parts) else "message"
    return "other"


def _rows_of_struct(value: Mapping[str, Any], name: str) -> list[Any]:
    """Older datasets keep a list of messages as a struct of lists."""
    if _kind_of_mapping(value) != "messages":
        raise BadRowError(f"`{name}` is not a list of messages")
    if len({len(part) for part in value.values() if isinstance(part, list | tuple)}) != 1:
        raise BadRowError(f"`{name}` has lists of different lengths")
    lists = {key: part for key, part in value.items() if isinstance(part, list | tuple)}
    return [dict(zip(lists, items, strict=True)) for items in zip(*lists.values(), strict=True)]


def _completion(row: Raw, column: str, prompt: list[Message]) -> str:
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


def _any_prompt(row: Raw) -> list[Message]:
    return [_user(row["prompt"])] if isinstance(row["prompt"], str) else read_messages(row["prompt"], "prompt")


def _alpaca_prompt(row: Raw) -> list[Message]:
    """The messages of an instruction, joined with its input as LLaMA-Factory does."""
    messages: list[Message] = []
    history = row.get("history") or []
    if not isinstance(history, list | tuple):
        raise BadRowError("`history` is not a list")
    for number, turn in enumerate(history, start=1):
        if kind_of(turn) != "texts" or len(turn) != 2:
            raise BadRowError(f"item {number} of `history` is not a list of an instruction and a response")
        messages += [_user(turn[0]), {"role": "assistant", "content": turn[1]}]
    given = row.get("input")
    if given is not None and not isinstance(given, str):
        raise BadRowError("`input` is not a string")
    _check_text(row["instruction"], "`instruction`")
    messages.append(_user(f"{row['instruction']}\n{given}" if given else row["instruction"]))
    return _with_system(row, messages)


def _with_system(row: Raw, messages: list[Message]) -> list[Message]:
    system = row.get("system")
    if system is None or system == "":
        return messages
    if not isinstance(system, str):
        raise BadRowError("`system` is not a string")
    if messages and messages[0]["role"] == "system":
        raise BadRowError("there are two system messages: the column `system` and one in the conversation")
    return [{"role": "system", "content": system}, *messages]


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _check_text(text: Any, name: str) -> None:
    if not isinstance(text, str):
        raise BadRowError(f"{name} is {_KIND_NAMES[kind_of(text)]}, not a string")
    if not text.strip():
        raise BadRowError(f"{name} is empty")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRowError(f"{name} holds half a surrogate pair at character {error.start + 1}") from error


def _score(raw: Raw, name: str) -> float | None:
    for column in _SCORES[name]:
        value = raw.get(column)
        try:
            number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
        except (ValueError, OverflowError):
            continue
        if math.isfinite(number):
            return number
    return None
