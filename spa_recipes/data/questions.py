"""What the llm judge is asked about two answers: a Jinja template, run in a sandbox."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from spa_recipes.data.rows import Message
from spa_recipes.data.template import MAX_FILE_BYTES, render
from spa_recipes.errors import DataError, RecipeError
from spa_recipes.state.reading import read_text

SHIPPED_QUESTION = Path(__file__).with_name("question.jinja")
"""The template that is used where the recipe names none; it lists the variables."""

Question = Callable[[Sequence[Message], str, str], str]
"""From a conversation and the texts of answers A and B to the judge's question."""

_PROBES = ("SPAPROMPT", "SPAFIRST", "SPASECOND")


def load_question(path: Path) -> Question:
    """Read a template and try it out.

    Raises:
        RecipeError: it cannot be read or is no template, fails, or does not show the prompt and both answers.
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

    def question(conversation: Sequence[Message], answer_a: str, answer_b: str) -> str:
        messages = [dict(message) for message in conversation]
        try:
            return render(
                lambda: template.render(
                    conversation=messages, prompt=messages[-1]["content"], answer_a=answer_a, answer_b=answer_b
                )
            )
        except Exception as error:  # a template is a program: it can fail in any way
            reason = str(error) or type(error).__name__
            raise DataError(f"the template fails: {reason}", where=where, fix="correct the template") from error

    prompt, first, second = _PROBES
    try:
        shown = question([{"role": "user", "content": prompt}], first, second)
    except DataError as error:
        raise RecipeError(error.what, where=where, fix=error.fix) from error
    missing = [
        name for name, probe in zip(("prompt", "answer_a", "answer_b"), _PROBES, strict=True) if probe not in shown
    ]
    if missing:
        raise RecipeError(
            f"the template does not show {' and '.join(missing)}",
            where=where,
            fix=f"write {{{{ {missing[0]} }}}} where it belongs",
        )
    return question
