"""Answers to judge that have no label. Those of labelled pairs are judged, too: see `pairs`."""

from __future__ import annotations

from spa_recipes.data.forms.answers import NAMED_ONLY, Answers, texts_of
from spa_recipes.data.forms.form import Form, Raw, Slot
from spa_recipes.data.forms.messages import read_prompt
from spa_recipes.data.forms.pairs import FIRST, PAIR_FORMS, PROMPT_NAMES, SECOND, parse_two


def _parse_responses(row: Raw) -> Answers:
    return Answers(read_prompt(row["prompt"], "prompt"), texts_of(row["answers"], "answers"))


CANDIDATE_FORMS = (
    *PAIR_FORMS,
    Form(
        "prompt and responses",
        {
            "prompt": Slot((*PROMPT_NAMES, "instruction"), ("text", "transcript", "messages")),
            "answers": Slot(("responses", "answers", "completions"), ("texts", "messages")),
        },
        _parse_responses,
        may=NAMED_ONLY,
    ),
    Form(
        "prompt, response_a and response_b",
        {
            "prompt": Slot((*PROMPT_NAMES, "instruction"), ("text", "transcript", "messages")),
            "first": Slot(FIRST, ("text", "messages")),
            "second": Slot(SECOND, ("text", "messages")),
        },
        parse_two,
        may=NAMED_ONLY,
    ),
)
"""Forms of answers to judge, in the order in which they are tried."""
