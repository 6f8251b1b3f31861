"""A small server that speaks OpenAI's chat completions, for tests of what asks one."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler
from types import MappingProxyType
from typing import Any, NamedTuple

from tests.kit.local_server import LocalServer


class Reply(NamedTuple):
    """What the server sends instead of a chat completion.

    `drop` ends the connection without a word; `pause` is the time in seconds before each byte of the body.
    """

    status: int = 200
    body: str | bytes = ""
    headers: Mapping[str, str] = MappingProxyType({})
    drop: bool = False
    pause: float = 0.0


Answer = Callable[[dict[str, Any]], str | Reply | None]
"""From the body of a request to the assistant's words, or to a whole reply; None is a message without content."""


class EndpointServer(LocalServer):
    """Serves `answer` on a free port of this machine while it is entered.

    Attributes:
        asked: bodies of all requests, in the order in which they came.
        headers: their headers.
        keys: their `Authorization` headers.
        most_at_once: the largest number of requests that were under way together.
    """

    def __init__(self, answer: Answer, key: str | None = None) -> None:
        super().__init__(self._handler())
        self.answer, self.key = answer, key
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.keys: list[str | None] = []
        self.most_at_once = 0
        self._now = 0
        self._lock = threading.Lock()

    @property
    def base_url(self) -> str:
        """For `endpoint.base_url`."""
        return f"{self.address}/v1"

    def endpoint(self, **changes: Any) -> dict[str, Any]:
        """An `endpoint` section of a recipe that asks this server without a key."""
        return {"base_url": self.base_url, "model": "tester", "api_key_env": None, **changes}

    def _reply(self, path: str, key: str | None, body: dict[str, Any]) -> Reply:
        with self._lock:
            self.asked.append(body)
            self.keys.append(key)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            if path != "/v1/chat/completions":
                return Reply(404, json.dumps({"error": {"message": f"no {path} here"}}))
            if self.key is not None and key != f"Bearer {self.key}":
                return Reply(401, json.dumps({"error": {"message": f"Incorrect API key provided: {key}"}}))
            words = self.answer(body)
        finally:
            with self._lock:
                self._now -= 1
        return words if isinstance(words, Reply) else Reply(body=completion(words))

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # or head and body of a reply come 40 ms apart

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.headers.append(dict(self.headers))
                reply = server._reply(self.path, self.headers.get("Authorization"), body)
                if reply.drop:
                    self.close_connection = True
                    return
                content = reply.body.encode() if isinstance(reply.body, str) else reply.body
                self.send_response(reply.status)
                for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                with contextlib.suppress(ConnectionError):  # the other side may have gone meanwhile
                    self.end_headers()
                    for part in [content] if not reply.pause else [content[i : i + 1] for i in range(len(content))]:
                        time.sleep(reply.pause)
                        self.wfile.write(part)

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        return Handler


def completion(words: str | None) -> str:
    """The JSON of a chat completion."""
    message = {"role": "assistant", "content": words}
    return json.dumps({"object": "chat.completion", "choices": [{"index": 0, "message": message}]})
