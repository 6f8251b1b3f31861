"""The page of a session, for one person's browser on this machine.

Whoever asks needs the token in the address. A page of another site gets nothing: Host and Origin have to name this
server. The page itself may load nothing from anywhere, and runs no script but its own.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import socketserver
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from importlib.resources import files
from typing import Any

from spa_recipes.errors import RecipeError, SpaError, system_error
from spa_recipes.label.file import CHOICES
from spa_recipes.label.markdown import rendered
from spa_recipes.label.session import Session, StaleError
from spa_recipes.label.tally import counts, with_itself

HOST = "127.0.0.1"
MOST_BYTES = 4096
"""Bytes of a request at most: a choice has few."""
SECONDS = 30
"""After so long a connection on which nothing happens is closed."""

Lines = Callable[[], Sequence[str]]


class LabelServer(socketserver.ThreadingTCPServer):
    """Serves one session on this machine until it is closed.

    Attributes:
        address: of the page, with the token.
        ended: set when the person ends the session on the page.
    """

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, session: Session, summary: Lines, port: int | None = None) -> None:
        """Bind a port: the given one, or any that is free.

        Args:
            summary: lines for the end of the session.

        Raises:
            RecipeError: the port is taken.
        """
        self.session, self.summary = session, summary
        self.page, self.policy = _page()
        self.token = secrets.token_urlsafe(24)
        self.ended = threading.Event()
        try:
            super().__init__((HOST, port or 0), _Handler)
        except OSError as error:
            if port is None:
                raise system_error(error, place=f"a port of {HOST}") from error
            raise RecipeError(
                f"port {port} cannot be used ({error.strerror})",
                where="--port",
                fix="choose another, or leave it out: any free one is taken then",
            ) from error
        self.port = int(self.server_address[1])
        self.address = f"http://{HOST}:{self.port}/{self.token}/"
        self.names = {f"{name}:{self.port}" for name in (HOST, "localhost")}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle of an answer is no fault."""

    def state(self) -> dict[str, Any]:
        """What the page shows: a pair without a word of the judge's, and how far the session is."""
        session = self.session
        number, progress, rows = session.current(), session.progress, session.rows
        agreed, counted = with_itself(rows), counts(rows)
        state: dict[str, Any] = {
            "number": number,
            "done": progress.done,
            "total": progress.total,
            "labels": counted.labels,
            "ties": counted.ties,
            "skips": counted.skips,
            "again": [agreed.same, agreed.n] if agreed else None,
            "undo": session.can_undo,
        }
        if number is None:
            return {**state, "summary": [*self.summary()]}
        showing = session.showings[number]
        pair = session.source.pairs[showing.pair]
        return {
            **state,
            "prompt": [{"role": message["role"], "html": _html(message["content"])} for message in pair.prompt],
            "left": _html(pair.answers[showing.left]),
            "right": _html(pair.answers[1 - showing.left]),
        }


_html = lru_cache(maxsize=64)(rendered)


def _page() -> tuple[bytes, str]:
    """The page, and its Content-Security-Policy, which names its script and its style by their digests."""
    text = files("spa_recipes.label").joinpath("page.html").read_text("utf-8")

    def digest(tag: str) -> str:
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"

    allowed = f"script-src {digest('script')}; style-src {digest('style')}; connect-src 'self'"
    refused = "; ".join(f"{name} 'none'" for name in ("base-uri", "form-action", "frame-ancestors"))
    return text.encode(), f"default-src 'none'; {allowed}; {refused}"


class _RefusedError(Exception):
    """A request that is not answered, with its status."""


class _Handler(BaseHTTPRequestHandler):
    server: LabelServer
    server_version, sys_version = "spa", ""
    timeout = SECONDS

    def do_GET(self) -> None:
        self._answer({"": self._send_page, "state": self._send_state})

    def do_POST(self) -> None:
        self._answer({"choose": self._choose, "undo": self._undo, "end": self._end})

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing is logged: the address holds the token."""

    def _answer(self, ways: dict[str, Callable[[], None]]) -> None:
        try:
            ways[self._asked(ways)]()
        except _RefusedError as refused:
            self._send_json(refused.args[0], {"error": HTTPStatus(refused.args[0]).phrase})
        except StaleError:
            self._send_json(HTTPStatus.CONFLICT, self.server.state())
        except SpaError as error:
            self._send_json(HTTPStatus.INSUFFICIENT_STORAGE, {"error": str(error)})

    def _asked(self, ways: dict[str, Callable[[], None]]) -> str:
        """What is asked for, of somebody who may ask."""
        if self.headers.get_all("Host") is None or self.headers["Host"] not in self.server.names:
            raise _RefusedError(HTTPStatus.FORBIDDEN)
        _, _, rest = self.path.partition("/")
        token, _, name = rest.partition("/")
        if not secrets.compare_digest(token.encode(), self.server.token.encode()) or name not in ways:
            raise _RefusedError(HTTPStatus.NOT_FOUND)
        origin = self.headers["Origin"]
        if origin not in {f"http://{own}" for own in self.server.names} and (origin or self.command == "POST"):
            raise _RefusedError(HTTPStatus.FORBIDDEN)
        return name

    def _send_page(self) -> None:
        self._send(HTTPStatus.OK, "text/html; charset=utf-8", self.server.page)

    def _send_state(self) -> None:
        self._send_json(HTTPStatus.OK, self.server.state())

    def _choose(self) -> None:
        asked = self._body()
        number, choice = asked.get("number"), next((c for c in CHOICES if c == asked.get("choice")), None)
        if type(number) is not int or choice is None:
            raise _RefusedError(HTTPStatus.BAD_REQUEST)
        self.server.session.choose(number, choice)
        self._send_state()

    def _undo(self) -> None:
        self._body()
        self.server.session.undo()
        self._send_state()

    def _end(self) -> None:
        self._body()
        self._send_json(HTTPStatus.OK, {"summary": [*self.server.summary()]})
        self.server.ended.set()

    def _body(self) -> dict[str, Any]:
        """The JSON object of a request."""
        length = self.headers.get("Content-Length", "")
        if self.headers.get_content_type() != "application/json" or not re.fullmatch("[0-9]{1,6}", length):
            raise _RefusedError(HTTPStatus.BAD_REQUEST)
        if int(length) > MOST_BYTES:
            raise _RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        try:
            body = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            raise _RefusedError(HTTPStatus.BAD_REQUEST)
        return body

    def _send_json(self, status: int, value: Any) -> None:
        self._send(status, "application/json", json.dumps(value).encode())

    def _send(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(content))),
            ("Content-Security-Policy", self.server.policy),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "same-origin"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("Cross-Origin-Opener-Policy", "same-origin"),
            ("Cache-Control", "no-store"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
