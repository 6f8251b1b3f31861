"""The server of `spa label`: who may ask, what the page may do, and many requests at the same time."""

import socket
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from spa_recipes.errors import RecipeError
from spa_recipes.label.markdown import LONGEST, rendered
from spa_recipes.label.pairs import Judged, Source
from spa_recipes.label.server import LabelServer
from spa_recipes.label.words import summary
from tests.kit.labelling import Asker, pairs_of, served, session, source_of

HOSTILE = """<script>steal()</script> <img src=x onerror=alert(1)> [x](javascript:alert(1)) [y](http://e.example/)
![z](http://e.example/z.png)

```html"><script>
</code><script>steal()</script>
```

| a |
|--:|
| <b onclick=steal()>b</b> |

<div style="position:fixed">x</div>
"""


@pytest.fixture
def asker(tmp_path: Path) -> Iterator[Asker]:
    with session(tmp_path / "l.jsonl", source_of(30, Judged(1, 0.9))) as one, served(one) as asker:
        yield asker


def test_the_page_may_load_nothing_and_runs_its_own_script_only(asker: Asker) -> None:
    page = asker.get()
    policy = page.headers["Content-Security-Policy"]
    assert page.status == 200
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert policy.count("'sha256-") == 2
    assert not any(f"{name}=" in page.text for name in ("src", "href", "action", " onclick", " style"))
    assert page.headers["Cache-Control"] == "no-store"
    assert page.headers["X-Content-Type-Options"] == "nosniff"


def test_nobody_gets_in_without_the_token(asker: Asker) -> None:
    for path in (
        "/",
        "/state",
        "/favicon.ico",
        "/wrong/state",
        f"/{asker.server.token}x/state",
        "/../state",
        "//state",
    ):
        reply = asker.at(asker.origin + path)
        assert reply.status == 404
        assert "question" not in reply.text
    assert asker.get("../../etc/passwd").status == 404
    assert asker.get("page.html").status == 404


def test_a_name_that_leads_here_is_not_enough(asker: Asker) -> None:
    port = asker.server.port
    for host in (
        "evil.example",
        f"evil.example:{port}",
        "127.0.0.1",
        f"127.0.0.1:{port + 1}",
        f"127.0.0.1.evil:{port}",
    ):
        assert asker.get("state", Host=host).status == 403
        assert asker.post("choose", {"number": 0, "choice": "left"}, Host=host).status == 403
    assert asker.get("state", Host=f"localhost:{port}").status == 200


@pytest.mark.parametrize("origin", ["", "null", "http://evil.example", "https://127.0.0.1", "http://127.0.0.1:1"])
def test_another_page_can_choose_nothing(asker: Asker, origin: str) -> None:
    for name in ("choose", "undo", "end"):
        assert asker.post(name, {"number": 0, "choice": "left"}, Origin=origin).status == 403
    assert not asker.server.session.rows
    assert not asker.server.ended.is_set()


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        ({"number": 0, "choice": "both"}, {}, 400),
        ({"number": "0", "choice": "left"}, {}, 400),
        ({"number": True, "choice": "left"}, {}, 400),
        ({"number": 0, "choice": ["left"]}, {}, 400),
        ([0], {}, 400),
        (b"{", {}, 400),
        (b"[" * 4000, {}, 400),
        (b"x" * 5000, {}, 413),
        ({"number": 0, "choice": "left"}, {"Content-Type": "text/plain"}, 400),
        ({"number": 1, "choice": "left"}, {}, 409),
        ({"number": -1, "choice": "left"}, {}, 409),
    ],
)  # fmt: skip
def test_what_is_no_choice_changes_nothing(asker: Asker, body: object, headers: dict[str, str], status: int) -> None:
    assert asker.post("choose", body, **headers).status == status
    assert not asker.server.session.rows


def test_a_choice_gives_the_next_pair_without_a_word_of_the_judges(asker: Asker) -> None:
    first = asker.get("state").json
    second = asker.post("choose", {"number": 0, "choice": "left"}).json
    assert (first["number"], second["number"], second["labels"]) == (0, 1, 1)
    assert {*first} == {
        "number", "done", "total", "labels", "ties", "skips", "again", "undo", "prompt", "left", "right"
    }  # fmt: skip
    assert "0.9" not in asker.get("state").text
    undone = asker.post("undo").json
    assert (undone["number"], undone["labels"], undone["undo"]) == (0, 0, False)


def test_of_many_windows_that_answer_at_once_one_counts(asker: Asker) -> None:
    statuses: list[int] = []

    def choose(choice: str) -> None:
        statuses.append(asker.post("choose", {"number": 0, "choice": choice}).status)

    threads = [threading.Thread(target=choose, args=(choice,)) for choice in ["left", "right", "tie", "skip"] * 5]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200] + [409] * 19
    assert len(asker.server.session.file.path.read_text().splitlines()) == 1


def test_a_hostile_answer_is_text(tmp_path: Path) -> None:
    source = Source(pairs_of([(HOSTILE, HOSTILE, "x")]), {"model": "tiny"}, 0, 1)
    with session(tmp_path / "l.jsonl", source) as one, served(one) as asker:
        state = asker.get("state").json
    for html in (state["prompt"][0]["html"], max(state["left"], state["right"], key=len)):
        assert "&lt;script&gt;steal()&lt;/script&gt;" in html
        found = Tags()
        found.feed(html)
        assert found.tags == {"p", "br", "pre", "code", "span", "table", "thead", "tbody", "tr", "th", "td"}
        assert found.attributes == {"class", "title", "dir"}


class Tags(HTMLParser):
    """The tags and attributes of a piece of HTML, as a browser reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


@pytest.mark.parametrize("text", ["a" * (LONGEST + 1), "<" * (LONGEST + 1), "> " * 5000, "[" * 4000, "*a_" * 8000])
def test_a_very_long_or_deep_answer_is_rendered_soon(text: str) -> None:
    assert "<<" not in rendered(text)


def test_the_end_on_the_page_ends_the_session(asker: Asker) -> None:
    asker.post("choose", {"number": 0, "choice": "right"})
    assert asker.post("end").json["summary"][0].startswith("1 label, 0 ties, 0 skips in ")
    assert asker.server.ended.wait(10)  # it is set after the answer is sent


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken, session(tmp_path / "l.jsonl", source_of(3)) as one:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(RecipeError, match=r"--port: port \d+ cannot be used \(Address already in use\); choose"):
            LabelServer(one, lambda: summary(one), taken.getsockname()[1])
