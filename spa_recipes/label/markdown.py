"""Markdown of a model as HTML that cannot do anything: no raw HTML, no links to follow, no pictures, no styles."""

from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from markdown_it.token import Token

LONGEST = 100_000
"""Characters of a text that are rendered; a longer one is shown as it is."""

_DIRECTED = {f"{name}_open" for name in ("paragraph", "heading", "bullet_list", "ordered_list", "blockquote", "table")}


def rendered(text: str) -> str:
    """The HTML of a text in Markdown. Each block reads from the right where its first letter does."""
    if len(text) > LONGEST:
        return f'<pre dir="auto">{escape(text)}</pre>'
    html: str = _renderer().render(text)
    return html


@cache
def _renderer() -> MarkdownIt:
    markdown = MarkdownIt("js-default", {"html": False, "breaks": True}).disable("image")
    markdown.core.ruler.push("plain", _make_plain)
    markdown.add_render_rule("link_open", _open_link)
    markdown.add_render_rule("link_close", lambda *_: "</span>")
    return markdown


def _make_plain(state: StateCore) -> None:
    """Set the direction of blocks, and say how cells are aligned by a class, as the page allows no styles."""
    for token in state.tokens:
        if token.type in _DIRECTED:
            token.attrSet("dir", "auto")
        if style := token.attrs.pop("style", None):
            token.attrSet("class", str(style).rpartition(":")[2])


def _open_link(
    renderer: Any, tokens: Sequence[Token], index: int, options: Mapping[str, Any], env: Mapping[str, Any]
) -> str:
    """A link is text whose address shows under the pointer: nothing on the page leads out of it."""
    return f'<span class="link" title="{escape(str(tokens[index].attrGet("href") or ""))}">'
