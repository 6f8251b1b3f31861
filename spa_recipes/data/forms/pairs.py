"""Labelled pairs: a prompt, a chosen and a rejected response."""

from __future__ import annotations

import math
from typing import NamedTuple

from spa_recipes.data.forms.form import MESSAGES, TEXT, BadRowError, Form, Raw, kind_of
from spa_recipes.data.forms.messages import (
    check_prompt,
    check_text,
    completion,
    prompt_of,
    read_messages,
    split_answer,
    user,
    with_system,
)
from spa_recipes.data.rows import Message, PairRow, prompt_id

# The first name that a row has is used; datasets name these columns differently.
_SCORES = {
    "score_chosen": ("score_chosen", "chosen_score", "chosen-rating", "chosen_rating"),
    "score_rejected": ("score_rejected", "rejected_score", "rejected-rating", "rejected_rating"),
    "gold_chosen": ("gold_chosen",),
    "gold_rejected": ("gold_rejected",),
}


class Pair(NamedTuple):
    """A prompt and two responses, not checked yet."""

    prompt: list[Message]
    chosen: str
    rejected: str


def pair_row(pair: Pair, raw: Raw, row: int) -> PairRow:
    """Check a pair and give it its canonical form."""
    check_prompt(pair.prompt)
    for name, text in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        check_text(text, f"the {name} response")
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


def _parse_string_responses(row: Raw) -> Pair:
    return Pair(prompt_of(row), row["chosen"], row["rejected"])


def _parse_explicit(row: Raw) -> Pair:
    prompt = read_messages(row["prompt"], "prompt")
    return Pair(prompt, completion(row, "chosen", prompt), completion(row, "rejected", prompt))


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
        return pair._replace(prompt=[user(row["prompt"])])
    said = [message["content"].strip() for message in pair.prompt if message["role"] == "user"]
    # Of several user turns, datasets name the first or the last one.
    if row["prompt"].strip() not in (said[:1] + said[-1:]):
        raise BadRowError("`prompt` is not what the user says in `chosen` and `rejected`")
    return pair


def _parse_sharegpt(row: Raw) -> Pair:
    prompt = with_system(row, read_messages(row["conversations"], "conversations"))
    return Pair(prompt, completion(row, "chosen", prompt), completion(row, "rejected", prompt))


def _parse_alpaca(row: Raw) -> Pair:
    return Pair(_alpaca_prompt(row), row["chosen"], row["rejected"])


def _parse_alpaca_outputs(row: Raw) -> Pair:
    outputs = row["output"]
    if len(outputs) != 2:
        raise BadRowError(f"`output` holds {len(outputs)} responses, not 2")
    return Pair(_alpaca_prompt(row), outputs[0], outputs[1])


def _alpaca_prompt(row: Raw) -> list[Message]:
    """The messages of an instruction, joined with its input as LLaMA-Factory does."""
    messages: list[Message] = []
    history = row.get("history") or []
    if not isinstance(history, list | tuple):
        raise BadRowError("`history` is not a list")
    for number, turn in enumerate(history, start=1):
        if kind_of(turn) != "texts" or len(turn) != 2:
            raise BadRowError(f"item {number} of `history` is not a list of an instruction and a response")
        messages += [user(turn[0]), {"role": "assistant", "content": turn[1]}]
    given = row.get("input")
    if given is not None and not isinstance(given, str):
        raise BadRowError("`input` is not a string")
    check_text(row["instruction"], "`instruction`")
    messages.append(user(f"{row['instruction']}\n{given}" if given else row["instruction"]))
    return with_system(row, messages)


_ALPACA_OPTIONAL = ("input", "system", "history")
PAIR_FORMS = (
    Form(
        "TRL explicit, strings",
        {"prompt": TEXT, "chosen": TEXT, "rejected": TEXT},
        _parse_string_responses,
    ),
    Form(
        "TRL explicit, message lists",
        {"prompt": MESSAGES, "chosen": MESSAGES, "rejected": MESSAGES},
        _parse_explicit,
    ),
    Form(
        "string prompt and whole conversations, as UltraFeedback",
        {"prompt": TEXT, "chosen": MESSAGES, "rejected": MESSAGES},
        _parse_string_and_conversations,
    ),
    Form(
        "message-list prompt and string responses",
        {"prompt": MESSAGES, "chosen": TEXT, "rejected": TEXT},
        _parse_string_responses,
    ),
    Form(
        "ShareGPT pairs",
        {
            "conversations": MESSAGES,
            "chosen": ("message", "messages", "text"),
            "rejected": ("message", "messages", "text"),
        },
        _parse_sharegpt,
        optional=("system",),
        without=("prompt",),
    ),
    Form(
        "Alpaca pairs",
        {"instruction": TEXT, "chosen": TEXT, "rejected": TEXT},
        _parse_alpaca,
        optional=_ALPACA_OPTIONAL,
        without=("prompt", "conversations"),
    ),
    Form(
        "Alpaca pairs, output list",
        {"instruction": TEXT, "output": ("texts",)},
        _parse_alpaca_outputs,
        optional=_ALPACA_OPTIONAL,
        without=("prompt", "conversations", "chosen", "rejected"),
    ),
    Form(
        "TRL implicit, whole conversations",
        {"chosen": MESSAGES, "rejected": MESSAGES},
        _parse_implicit,
        without=("prompt", "conversations", "instruction"),
    ),
)
