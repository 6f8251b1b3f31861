"""Forms of which a row gives a labelled pair: a prompt, a chosen and a rejected answer.

A row of several ranked answers gives the pair of its best and its worst one.
"""

from __future__ import annotations

from spa_recipes.data.forms.answers import (
    NAMED_ONLY,
    NO_LABELS,
    SCORES,
    TIE,
    Answers,
    alpaca_prompt,
    number_of,
    pair_of,
    ranked,
    scored,
    texts_of,
)
from spa_recipes.data.forms.form import ANY_LABEL, MESSAGES, TEXT, BadRowError, Form, Kind, Raw, Slot
from spa_recipes.data.forms.messages import completion, read_messages, read_prompt, split_answer
from spa_recipes.data.rows import Message

_ANY_ANSWER: tuple[Kind, ...] = ("message", "messages", "text")
_PROMPT: tuple[Kind, ...] = ("text", "transcript", "messages")
PROMPT_NAMES = ("prompt", "question", "query", "input")
CHOSEN, REJECTED = ("chosen", "chosen_response"), ("rejected", "rejected_response")
FIRST = ("response_a", "response_1", "response1", "output_1", "answer_a", "completion_a")
SECOND = ("response_b", "response_2", "response2", "output_2", "answer_b", "completion_b")
LABEL = ("label", "labels", "preference", "winner", "preferred")
ALPACA_MAY = {"input": Slot(("input",)), "history": Slot(("history",))}
_PAIR_MAY = {**SCORES, "status": Slot(("status",)), **NAMED_ONLY}


def _decided(row: Raw, answers: Answers) -> Answers:
    """A pair, unless the column `status` says that it is a tie, or none for another reason."""
    why = NO_LABELS.get(status) if isinstance(status := row.get("status"), str) else None
    return answers if why is None else answers._replace(best=None, worst=None, why=why)


def _parse_prompt_and_answers(row: Raw) -> Answers:
    prompt = read_prompt(row["prompt"], "prompt")
    return _decided(
        row,
        pair_of(prompt, completion(row["chosen"], "chosen", prompt), completion(row["rejected"], "rejected", prompt)),
    )


def _parse_whole(row: Raw) -> Answers:
    prompt, best = split_answer(read_messages(row["chosen"], "chosen"), "`chosen`")
    other, worst = split_answer(read_messages(row["rejected"], "rejected"), "`rejected`")
    _same_prompt(prompt, other, "`chosen` and `rejected`")
    return _decided(row, pair_of(prompt, best, worst))


def _same_prompt(one: list[Message], other: list[Message], names: str) -> None:
    if one != other:
        number = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
        at = f"at message {number + 1}" if number is not None else "in length"
        raise BadRowError(f"{names} differ before their last message ({at})")


def _parse_string_and_whole(row: Raw) -> Answers:
    answers = _parse_whole(row)
    asked = read_prompt(row["prompt"], "prompt")
    if not answers.prompt:
        return answers._replace(prompt=asked)
    said = [message["content"].strip() for message in answers.prompt if message["role"] == "user"]
    # Of several user turns, datasets name the first or the last one.
    if asked != answers.prompt and asked[-1]["content"].strip() not in (said[:1] + said[-1:]):
        raise BadRowError("`prompt` is not what the user says in `chosen` and `rejected`")
    return answers


def _parse_alpaca(row: Raw) -> Answers:
    return _decided(row, pair_of(alpaca_prompt(row), row["chosen"], row["rejected"]))


def _parse_alpaca_outputs(row: Raw) -> Answers:
    outputs = row["output"]
    if len(outputs) != 2:
        raise BadRowError(f"`output` holds {len(outputs)} responses, not 2")
    return pair_of(alpaca_prompt(row), outputs[0], outputs[1])


def _parse_alpaca_two(row: Raw) -> Answers:
    return Answers(alpaca_prompt(row), [row["first"], row["second"]])


def parse_two(row: Raw) -> Answers:
    """Two answers; which is better is in the label, or nowhere."""
    prompt = read_prompt(row["prompt"], "prompt")
    return Answers(prompt, [completion(row[name], name, prompt) for name in ("first", "second")])


def _parse_two_whole(row: Raw) -> Answers:
    prompt, one = split_answer(read_messages(row["first"], "first"), "`first`")
    rest, other = split_answer(read_messages(row["second"], "second"), "`second`")
    _same_prompt(prompt, rest, "`first` and `second`")
    return Answers(prompt, [one, other])


def _parse_one_hot(row: Raw) -> Answers:
    marks = [number_of(row[name]) for name in ("first_wins", "second_wins", "tie")]
    if sorted(marks, key=lambda mark: mark or 0.0) != [0.0, 0.0, 1.0]:
        raise BadRowError("not exactly one of `winner_model_a`, `winner_model_b` and `winner_tie` is 1")
    if marks[2] == 1.0:
        return parse_two(row)._replace(why=TIE)
    best = marks.index(1.0)
    return parse_two(row)._replace(best=best, worst=1 - best)


def _parse_ranked(row: Raw) -> Answers:
    return ranked(read_prompt(row["prompt"], "prompt"), row["answers"], "answers")


def _parse_scored(row: Raw) -> Answers:
    prompt = read_prompt(row["prompt"], "prompt")
    return scored(prompt, texts_of(row["answers"], "answers"), list(row["scores"]), "answers")


def _parse_judged(row: Raw) -> Answers:
    prompt = read_prompt(row["prompt"], "prompt")
    return Answers(prompt, [completion(row["chosen"], "chosen", prompt)])


JUDGED = Form(
    "KTO: one answer with a label",
    {
        "prompt": Slot((*PROMPT_NAMES, "instruction"), _PROMPT),
        "chosen": Slot(("completion", "response", "answer", "output"), _ANY_ANSWER),
        "label": Slot(("label", "labels"), ANY_LABEL),
    },
    _parse_judged,
    without=("chosen", "rejected"),
)
"""Answers that are good or bad: pairs where a prompt has both, demonstrations where they are good."""

PAIR_FORMS = (
    Form(
        "Alpaca pairs",
        {"prompt": Slot(("instruction",), TEXT), "chosen": Slot(CHOSEN, TEXT), "rejected": Slot(REJECTED, TEXT)},
        _parse_alpaca,
        may={**ALPACA_MAY, **_PAIR_MAY},
        without=("prompt", "conversations"),
    ),
    Form(
        "Alpaca pairs, output list",
        {"prompt": Slot(("instruction",), TEXT), "output": Slot(("output",), ("texts",))},
        _parse_alpaca_outputs,
        may={**ALPACA_MAY, **NAMED_ONLY},
        without=("prompt", "conversations", "chosen", "rejected"),
    ),
    Form(
        "TRL explicit, strings",
        {"prompt": Slot(PROMPT_NAMES, ("text", "transcript")), "chosen": Slot(CHOSEN, TEXT),
         "rejected": Slot(REJECTED, TEXT)},
        _parse_prompt_and_answers,
        may=_PAIR_MAY,
    ),
    Form(
        "TRL explicit, message lists",
        {"prompt": Slot(("prompt",), MESSAGES), "chosen": Slot(CHOSEN, MESSAGES), "rejected": Slot(REJECTED, MESSAGES)},
        _parse_prompt_and_answers,
        may=_PAIR_MAY,
    ),
    Form(
        "string prompt and whole conversations, as UltraFeedback",
        {"prompt": Slot(PROMPT_NAMES, ("text", "transcript")), "chosen": Slot(CHOSEN, ("messages", "transcript")),
         "rejected": Slot(REJECTED, ("messages", "transcript"))},
        _parse_string_and_whole,
        may=_PAIR_MAY,
        whole=True,
    ),
    Form(
        "message-list prompt and string responses",
        {"prompt": Slot(("prompt", "messages"), MESSAGES), "chosen": Slot(CHOSEN, TEXT),
         "rejected": Slot(REJECTED, TEXT)},
        _parse_prompt_and_answers,
        may=_PAIR_MAY,
    ),
    Form(
        "ShareGPT pairs",
        {"prompt": Slot(("conversations",), MESSAGES), "chosen": Slot(CHOSEN, _ANY_ANSWER),
         "rejected": Slot(REJECTED, _ANY_ANSWER)},
        _parse_prompt_and_answers,
        may=_PAIR_MAY,
        without=("prompt",),
    ),
    Form(
        "TRL implicit, whole conversations",
        {"chosen": Slot(CHOSEN, MESSAGES), "rejected": Slot(REJECTED, MESSAGES)},
        _parse_whole,
        may=_PAIR_MAY,
        without=("prompt", "conversations", "instruction"),
        whole=True,
    ),
    Form(
        "HH-RLHF transcripts",
        {"chosen": Slot(CHOSEN, ("transcript",)), "rejected": Slot(REJECTED, ("transcript",))},
        _parse_whole,
        may=_PAIR_MAY,
        without=("prompt", "conversations", "instruction"),
        whole=True,
    ),
    Form(
        "ranked answers, as Nectar and UltraFeedback",
        {"prompt": Slot((*PROMPT_NAMES, "instruction"), _PROMPT),
         "answers": Slot(("answers", "completions", "responses"), ("ranked",))},
        _parse_ranked,
        may=NAMED_ONLY,
    ),
    Form(
        "answers and scores",
        {"prompt": Slot((*PROMPT_NAMES, "instruction"), _PROMPT),
         "answers": Slot(("responses", "answers", "completions"), ("texts", "messages")),
         "scores": Slot(("scores",), ("numbers",))},
        _parse_scored,
        may=NAMED_ONLY,
    ),
    Form(
        "SHP",
        {"prompt": Slot(("history",), TEXT), "first": Slot(("human_ref_A",), TEXT),
         "second": Slot(("human_ref_B",), TEXT), "label": Slot(("labels",), ANY_LABEL)},
        parse_two,
        may=NAMED_ONLY,
        first_is=1,
    ),
    Form(
        "HelpSteer preference",
        {"prompt": Slot(("prompt", "context"), _PROMPT), "first": Slot(("response_1", "response1"), TEXT),
         "second": Slot(("response_2", "response2"), TEXT),
         "label": Slot(("preference_strength", "overall_preference"), ANY_LABEL)},
        parse_two,
        may=NAMED_ONLY,
        first_is=-1,
    ),
    Form(
        "arena conversations",
        {"first": Slot(("conversation_a",), MESSAGES), "second": Slot(("conversation_b",), MESSAGES),
         "label": Slot(("winner",), ANY_LABEL)},
        _parse_two_whole,
        may=NAMED_ONLY,
        whole=True,
    ),
    Form(
        "arena, winner columns",
        {"prompt": Slot(("prompt",), _PROMPT), "first": Slot(("response_a",), _ANY_ANSWER),
         "second": Slot(("response_b",), _ANY_ANSWER), "first_wins": Slot(("winner_model_a",), ("other", "text")),
         "second_wins": Slot(("winner_model_b",), ("other", "text")), "tie": Slot(("winner_tie",), ("other", "text"))},
        _parse_one_hot,
        may=NAMED_ONLY,
    ),
    Form(
        "Alpaca, two outputs and a label",
        {"prompt": Slot(("instruction",), TEXT), "first": Slot(FIRST, TEXT), "second": Slot(SECOND, TEXT),
         "label": Slot(LABEL, ANY_LABEL)},
        _parse_alpaca_two,
        may={**ALPACA_MAY, **NAMED_ONLY},
        without=("prompt",),
    ),
    Form(
        "prompt, two responses and a label",
        {"prompt": Slot(PROMPT_NAMES, _PROMPT), "first": Slot(FIRST, _ANY_ANSWER),
         "second": Slot(SECOND, _ANY_ANSWER), "label": Slot(LABEL, ANY_LABEL)},
        parse_two,
        may=NAMED_ONLY,
    ),
    JUDGED,
)  # fmt: skip
"""Forms of labelled pairs, in the order in which they are tried."""
