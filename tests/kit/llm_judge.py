"""Questions to a judge in words that are easy to take apart, and a judge that answers by a known rule."""

import re
from pathlib import Path
from typing import Any

SHORT = "{{ prompt }}\n<A>{{ answer_a }}</A>\n<B>{{ answer_b }}</B>"
"""A question that is easy to take apart, and short enough for the sandbox's model."""
KEY = "sk-very-secret-0123456789"


def template(folder: Path, text: str) -> Path:
    path = folder / "question.jinja"
    path.write_text(text)
    return path


def parts(body: dict[str, Any]) -> tuple[str, str]:
    """The two answers of a question that was made with SHORT."""
    (found,) = re.findall(r"<A>(.*)</A>\n<B>(.*)</B>", body["messages"][-1]["content"])
    return found[0], found[1]


def longer(body: dict[str, Any]) -> str:
    """Prefers the answer with more words."""
    first, second = (len(text.split()) for text in parts(body))
    return "I count. " + ("[[C]]" if first == second else "[[A]]" if first > second else "[[B]]")
