"""What the llm judge is asked about two answers, or about one: a Jinja template, run in a sandbox."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from spa_recipes.data.rows import Message
from spa_recipes.data.template import MAX_FILE_BYTES, render
from spa_recipes.errors import DataError, RecipeError
from spa_recipes.state.reading import read_text

Mode = Literal["pairs", "single"]
"""Whether a question is about two answers or about one."""


class Form(NamedTuple):
    """What a question shows, and the template that is used where the recipe names none; it lists the variables."""

    answers: tuple[str, ...]
    shipped: Path


FORMS: dict[Mode, Form] = {
    "pairs": Form(("answer_a", "answer_b"), Path(__file__).with_name("question.jinja")),
    "single": Form(("answer",), Path(__file__).with_name("score.jinja")),
}


class Question(Protocol):
    """From a conversation and the texts of the answers, as many as the form shows, to the judge's question."""

    def __call__(self, conversation: Sequence[Message], *answers: str) -> str: ...


def load_question(path: Path, mode: Mode = "pairs") -> Question:
    """Read a template and try it out.

    Raises:
        RecipeError: it cannot be read or is no template, fails, or does not show the prompt and every answer.
    """
    from jinja2 import StrictUndefined, TemplateSyntaxError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    where = f"judge.prompt: {path}"
    environment = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        optimized=False,  # or parts would be computed here, without limits
    )
    try:
        template = environment.from_string(read_text(path, limit=MAX_FILE_BYTES))
    except TemplateSyntaxError as error:
        raise RecipeError(f"line {error.lineno}: {error.message}", where=where, fix="correct the template") from error
    except (OSError, ValueError, RecursionError) as error:
        raise RecipeError(f"the file cannot be read ({error})", where=where, fix="name a Jinja file") from error

    names = FORMS[mode].answers

    def question(conversation: Sequence[Message], *answers: str) -> str:
        messages = [dict(message) for message in conversation]
        try:
            return render(
                lambda: template.render(
                    conversation=messages,
                    prompt=messages[-1]["content"],
                    **dict(zip(names, answers, strict=True)),
                )
            )
        except Exception as error:  # a template is a program: it can fail in any way
            reason = str(error) or type(error).__name__
            raise DataError(f"the template fails: {reason}", where=where, fix="correct the template") from error

    probes = {"prompt": "SPAPROMPT", **{name: f"SPA{name.replace('_', '').upper()}X" for name in names}}
    try:
        shown = question([{"role": "user", "content": probes["prompt"]}], *(probes[name] for name in names))
    except DataError as error:
        raise RecipeError(error.what, where=where, fix=error.fix) from error
    missing = [name for name, probe in probes.items() if probe not in shown]
    if missing:
        raise RecipeError(
            f"the template does not show {' and '.join(missing)}",
            where=where,
            fix=f"write {{{{ {missing[0]} }}}} where it belongs",
        )
    return question
