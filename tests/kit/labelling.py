"""Pairs to label without a model, and a session's page on this machine for the time of a test."""

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from spa_recipes.label.file import opened
from spa_recipes.label.pairs import Judged, Pair, Source, comparable, pair_of
from spa_recipes.label.server import LabelServer
from spa_recipes.label.session import Session
from spa_recipes.label.words import summary


def pairs_of(texts: Sequence[tuple[str, str, str]], judged: Judged | None = None) -> list[Pair]:
    """Pairs of a prompt and two answers each."""
    return [pair_of([{"role": "user", "content": asked}], (one, other), judged) for asked, one, other in texts]


def source_of(count: int, judged: Judged | None = None, pick: str = "random") -> Source:
    """So many pairs, which say their number."""
    pairs = comparable(pairs_of([(f"question {i}", f"answer {i}", f"other {i}") for i in range(count)], judged))
    origin: dict[str, Any] = {"model": "tiny"} if judged is None else {"run": "mini", "iteration": 1, "pick": pick}
    return Source(pairs, origin, dropped=0, total=count)


@contextmanager
def session(path: Path, source: Source, **options: Any) -> Iterator[Session]:
    """A session of its own file."""
    with opened(path) as file:
        yield Session(source, file, **options)


class Reply(NamedTuple):
    """What a server answered."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        """The answer as JSON."""
        return json.loads(self.text)


class Asker:
    """Asks a server of labels, as its own page does unless told otherwise."""

    def __init__(self, server: LabelServer) -> None:
        self.server = server
        self.origin = server.address.removesuffix(f"/{server.token}/")

    def get(self, name: str = "", **headers: str) -> Reply:
        """GET of a name behind the token; `address` in the place of the server's own."""
        return self._ask(urllib.request.Request(self.server.address + name, headers=headers))

    def post(self, name: str, body: Any = None, **headers: str) -> Reply:
        """POST of JSON."""
        sent = {"Origin": self.origin, "Content-Type": "application/json", **headers}
        data = body if isinstance(body, bytes) else json.dumps(body if body is not None else {}).encode()
        kept = {name: value for name, value in sent.items() if value}
        return self._ask(urllib.request.Request(self.server.address + name, data, kept))

    def at(self, address: str) -> Reply:
        """GET of any address."""
        return self._ask(urllib.request.Request(address))

    def _ask(self, request: urllib.request.Request) -> Reply:
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return Reply(answer.status, dict(answer.headers), answer.read().decode())
        except urllib.error.HTTPError as error:
            return Reply(error.code, dict(error.headers), error.read().decode())


def ask(address: str, name: str, body: Any = None) -> Any:
    """Ask the page of a command at its address, as the page does; a body is sent."""
    origin = address[: address.index("/", len("http://"))]
    headers = {"Origin": origin, "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(address + name, data, headers), timeout=20) as answer:
        return json.loads(answer.read())


@contextmanager
def served(of: Session, port: int | None = None) -> Iterator[Asker]:
    """The page of a session."""
    with LabelServer(of, lambda: summary(of), port) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            yield Asker(server)
        finally:
            server.shutdown()
