"""What a row of preference data says: a prompt, answers to it, and perhaps which of them is better."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from spa_recipes.data.forms.form import (
    ANSWER_RANKS,
    ANSWER_SCORES,
    ANSWER_TEXTS,
    BadRowError,
    NoPairError,
    Raw,
    Slot,
    is_number,
    kind_of,
)
from spa_recipes.data.forms.messages import (
    asked,
    check_answer,
    check_prompt,
    check_text,
    read_messages,
    refuse_list,
    split_answer,
    user,
)
from spa_recipes.data.rows import CandidatesRow, Message, PairRow, prompt_id

SCORES = {
    "score_chosen": Slot(("score_chosen", "chosen_score", "chosen-rating", "chosen_rating")),
    "score_rejected": Slot(("score_rejected", "rejected_score", "rejected-rating", "rejected_rating")),
    "gold_chosen": Slot(("gold_chosen",)),
    "gold_rejected": Slot(("gold_rejected",)),
}
"""Scores that a row of a pair may have. A score that is no number is none."""
NAMED_ONLY = {name: Slot(()) for name in ("margin", "weight", "id")}
"""Columns that are read where `columns` names them: they stay beside the pair, and nothing trains with them."""


TIE = "a tie"
BY_A_PERSON = {
    "tied": "a tie, by a person",
    "skipped": "skipped by a person",
    "repeated": "the second look of a person at a pair",
}
"""Values of `status` in a file of `spa label` that are no labels, and why. Such rows are as they should be."""
NO_LABELS = {"tie": TIE, **BY_A_PERSON}
"""Values of `status` of rows that give no pair, and why."""


class Answers(NamedTuple):
    """A prompt and answers to it, not checked yet.

    Attributes:
        best, worst: which answers make the pair; None where only a label column can tell, or nothing.
        scores: of the best and the worst.
        why: why the row gives no pair, such as a tie.
    """

    prompt: list[Message]
    texts: list[str]
    best: int | None = None
    worst: int | None = None
    scores: tuple[float, float] | None = None
    why: str = "no answer is labelled as the better one"


def pair_of(prompt: list[Message], chosen: str, rejected: str) -> Answers:
    """The answers of a labelled pair."""
    return Answers(prompt, [chosen, rejected], 0, 1)


def pair_row(answers: Answers, raw: Raw, row: int) -> PairRow:
    """Check a pair and give it its canonical form.

    Raises:
        BadRowError: a text is missing, or both are the same. NoPairError: nothing says which one is better.
    """
    prompt = asked(answers.prompt)
    check_prompt(prompt)
    if answers.best is None or answers.worst is None:
        raise NoPairError(answers.why)
    chosen, rejected = answers.texts[answers.best], answers.texts[answers.worst]
    check_answer(chosen, "the chosen response")
    check_answer(rejected, "the rejected response")
    if chosen == rejected:
        raise BadRowError("the chosen response equals the rejected one")
    out: PairRow = {
        "prompt_id": prompt_id(prompt),
        "prompt": prompt,
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "row": row,
    }
    if answers.scores is not None:
        out["score_chosen"], out["score_rejected"] = answers.scores
    for name in (*SCORES, "margin", "weight"):
        if name in raw and (value := number_of(raw[name])) is not None:
            out[name] = value  # type: ignore[literal-required]
    if "id" in raw and raw["id"] is not None:
        out["id"] = str(raw["id"])
    return out


def candidates_row(answers: Answers, row: int) -> CandidatesRow:
    """Check answers that are to be judged and give them their canonical form."""
    prompt = asked(answers.prompt)
    check_prompt(prompt)
    if len(answers.texts) < 2:
        raise BadRowError(f"{len(answers.texts)} response, where at least 2 are needed to judge")
    for index, text in enumerate(answers.texts):
        check_answer(text, f"response {index + 1}")
    return {
        "prompt_id": prompt_id(prompt),
        "prompt": prompt,
        "responses": answers.texts,
        "label": answers.best,
        "row": row,
    }


def number_of(value: Any) -> float | None:
    """A finite number, also one in text; None for anything else."""
    try:
        number = float(value) if isinstance(value, str) or is_number(value) else math.nan
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def texts_of(value: Sequence[Any], name: str) -> list[str]:
    """A list of answers: strings, or messages of the assistant."""
    if kind_of(value) != "messages":
        return list(value)
    messages = read_messages(value, name)
    if any(message["role"] != "assistant" for message in messages):
        raise BadRowError(f"`{name}` holds a message that is not of assistant")
    return [split_answer([message], f"`{name}`")[1] for message in messages]


def ranked(prompt: list[Message], answers: Sequence[Raw], name: str) -> Answers:
    """Answers as objects with a text and a rank or a score; the first of equal ones counts."""
    texts = [next((item[key] for key in ANSWER_TEXTS if item.get(key) is not None), None) for item in answers]
    for number, text in enumerate(texts, start=1):
        check_text(text, f"answer {number} of `{name}`")
    key = next((key for key in (*ANSWER_RANKS, *ANSWER_SCORES) if any(key in item for item in answers)), None)
    values = [number_of(item.get(key)) for item in answers] if key is not None else []
    order = [-value if key in ANSWER_RANKS and value is not None else value for value in values]
    return scored(prompt, texts, order, name, scores=key in ANSWER_SCORES)


def scored(
    prompt: list[Message], texts: list[Any], order: Sequence[float | None], name: str, *, scores: bool = True
) -> Answers:
    """The best and the worst of several answers by a number that is high for a good one; those without are left out."""
    if len(order) != len(texts):
        raise BadRowError(f"`{name}` has {len(texts)} answers and {len(order)} scores")
    known = [(value, -index) for index, value in enumerate(order) if value is not None]
    if len(known) < 2:
        return Answers(prompt, texts)
    (high, first), low = max(known), min(value for value, _ in known)
    if high == low:
        return Answers(prompt, texts, why=TIE)
    worst = next(index for index, value in enumerate(order) if value == low)
    return Answers(prompt, texts, -first, worst, (high, low) if scores else None)


def alpaca_prompt(row: Raw) -> list[Message]:
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
    check_text(row["prompt"], "`instruction`")
    refuse_list(row["prompt"], "instruction")
    messages.append(user(f"{row['prompt']}\n{given}" if given else row["prompt"]))
    return messages
