"""Prompts without responses: their own forms, and those of labelled pairs and of conversations."""

from __future__ import annotations

from collections.abc import Callable

from spa_recipes.data.forms.answers import Answers, alpaca_prompt
from spa_recipes.data.forms.conversations import WHOLE_CONVERSATIONS
from spa_recipes.data.forms.form import MESSAGES, TEXT, Form, Raw, Slot
from spa_recipes.data.forms.messages import asked, check_prompt, read_prompt
from spa_recipes.data.forms.pairs import ALPACA_MAY, PAIR_FORMS, PROMPT_NAMES
from spa_recipes.data.rows import Message, PromptRow, prompt_id


def prompt_row(prompt: list[Message], row: int) -> PromptRow:
    """Check a prompt and give it its canonical form."""
    prompt = asked(prompt)
    check_prompt(prompt)
    return {"prompt_id": prompt_id(prompt), "prompt": prompt, "row": row}


def _prompt_of_answers(parse_answers: Callable[[Raw], Answers]) -> Callable[[Raw], list[Message]]:
    def parse(row: Raw) -> list[Message]:
        return parse_answers(row).prompt

    return parse


def _before_the_answer(parse: Callable[[Raw], list[Message]]) -> Callable[[Raw], list[Message]]:
    def parse_prompt(row: Raw) -> list[Message]:
        messages = parse(row)
        return messages[:-1] if messages[-1]["role"] == "assistant" else messages

    return parse_prompt


def _parse_prompt(row: Raw) -> list[Message]:
    return read_prompt(row["prompt"], "prompt")


# Labelled pairs lend their prompts too; they come first, as `prompt` alone may miss the system message.
PROMPT_FORMS = (
    *(form._replace(name=f"prompts of {form.name}", parse=_prompt_of_answers(form.parse)) for form in PAIR_FORMS),
    Form("prompt strings", {"prompt": Slot(PROMPT_NAMES, ("text", "transcript"))}, _parse_prompt),
    Form("prompt message lists", {"prompt": Slot(("prompt",), MESSAGES)}, _parse_prompt),
    Form("Alpaca prompts", {"prompt": Slot(("instruction",), TEXT)}, alpaca_prompt, may=ALPACA_MAY),
    *(form._replace(parse=_before_the_answer(form.parse)) for form in WHOLE_CONVERSATIONS),
)
"""Forms of prompts, in the order in which they are tried."""
