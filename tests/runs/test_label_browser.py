"""The page of `spa label` in a real browser without a screen: `make test-browser`."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from spa_recipes.label.pairs import Judged, Source
from tests.kit.labelling import pairs_of, served, session, source_of
from tests.unit.test_label_server import HOSTILE

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(importlib.util.find_spec("selenium") is None, reason="needs selenium (extra `dev`)"),
    pytest.mark.skipif(
        shutil.which("chromedriver") is None, reason="needs chromium and chromedriver (chromium-driver)"
    ),
]

SERVE = """
import sys
from pathlib import Path
from spa_recipes.cli.label import _serve
from tests.kit.labelling import session, source_of
with session(Path(sys.argv[1]), source_of(int(sys.argv[2]))) as one:
    _serve(one, int(sys.argv[3]) if len(sys.argv) > 3 else None, "")
"""


class Page:
    """A browser on a page of `spa label`."""

    def __init__(self, driver: Any, address: str) -> None:
        self.driver = driver
        driver.get(address)
        self.wait(lambda: self.number is not None or self.text("finish"))

    @property
    def number(self) -> int | None:
        """Number of the pair that is shown."""
        found: int | None = self.driver.execute_script("return state && state.number")
        return found

    def text(self, name: str) -> str:
        """The visible text of an element."""
        found: str = self.driver.find_element("id", name).text
        return found

    def press(self, key: str) -> None:
        """Press a key, and wait until the page shows what comes next."""
        before = self.driver.execute_script("return JSON.stringify(state)")
        self.driver.find_element("tag name", "body").send_keys(key)
        self.wait(lambda: self.driver.execute_script("return !busy && JSON.stringify(state)") not in (before, False))

    def wait(self, until: Callable[[], object]) -> None:
        """Wait until it is so."""
        end = time.monotonic() + 20
        while not until():
            assert time.monotonic() < end, self.driver.page_source[-3000:]
            time.sleep(0.02)

    def faults(self) -> list[str]:
        """What the browser has complained about; that there is no icon is none."""
        return [line["message"] for line in self.driver.get_log("browser") if "favicon" not in line["message"]]


@pytest.fixture
def browsers() -> Iterator[Callable[..., Any]]:
    """Opens browsers, each with a profile of its own."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    opened = []

    def browser(*arguments: str) -> Any:
        options = webdriver.ChromeOptions()
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,860", *arguments):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        opened.append(webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver"))))
        return opened[-1]

    yield browser
    for each in opened:
        each.quit()


@contextmanager
def serving(path: Path, count: int, port: int | None = None) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """A server in a process of its own, and its address."""
    arguments = [str(path), str(count), *([str(port)] if port else [])]
    with subprocess.Popen([sys.executable, "-c", SERVE, *arguments], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if found := re.search(r"http://\S+", line):
                    yield found[0], process
                    break
        finally:
            process.kill()


def shot(page: Page, name: str) -> None:
    """Keep a picture where SPA_SCREENSHOTS names a folder."""
    if folder := os.environ.get("SPA_SCREENSHOTS"):
        page.driver.save_screenshot(f"{folder}/{name}.png")


def test_keys_choose_undo_and_end(tmp_path: Path, browsers: Callable[..., Any]) -> None:
    path = tmp_path / "l.jsonl"
    with session(path, source_of(12, Judged(0, 0.6))) as one, served(one) as asker:
        page = Page(browsers(), asker.server.address)
        for key in "12tsu1":
            page.press(key)
        assert [row["choice"] for row in one.rows] == ["left", "right", "tie", "left"]
        assert (page.text("done"), page.text("total"), page.text("labels")) == ("4", "13", "3")
        shown = page.driver.find_element("css selector", "#left .text").text
        page.press("1")
        assert one.rows[-1]["chosen"][0]["content"] == shown
        while page.number is not None:
            page.press("2")
        assert "All pairs are labelled" in page.text("finish")
        assert "agree on" in page.text("finish")
        page.press("u")
        assert page.number is not None
        page.driver.find_element("id", "end").click()
        page.wait(lambda: "The session is over" in page.text("finish"))
        assert asker.server.ended.is_set()
        assert page.faults() == []


def test_two_people_at_the_same_time(tmp_path: Path, browsers: Callable[..., Any]) -> None:
    with (
        session(tmp_path / "a.jsonl", source_of(10), by="ada", repeats=0.0) as a,
        session(tmp_path / "b.jsonl", source_of(10), by="bob", repeats=0.0) as b,
        served(a) as of_ada,
        served(b) as of_bob,
    ):
        ada, bob = Page(browsers(), of_ada.server.address), Page(browsers(), of_bob.server.address)
        for _ in range(10):
            ada.press("1")
            bob.press("2")
        assert [row["choice"] for row in a.rows] == ["left"] * 10
        assert [row["choice"] for row in b.rows] == ["right"] * 10
        assert {row["by"] for row in b.rows} == {"bob"}


def test_two_windows_of_one_session_answer_no_pair_twice(tmp_path: Path, browsers: Callable[..., Any]) -> None:
    with session(tmp_path / "l.jsonl", source_of(10)) as one, served(one) as asker:
        first, second = Page(browsers(), asker.server.address), Page(browsers(), asker.server.address)
        first.press("1")
        second.press("2")
        assert "Another window was faster" in second.text("notice")
        assert second.number == 1
        assert [row["choice"] for row in one.rows] == ["left"]


def test_a_killed_server_loses_nothing(tmp_path: Path, browsers: Callable[..., Any]) -> None:
    path = tmp_path / "l.jsonl"
    driver = browsers()
    with serving(path, 20) as (address, process):
        page = Page(driver, address)
        for _ in range(5):
            page.press("1")
        process.send_signal(signal.SIGKILL)
        process.wait()
        driver.find_element("tag name", "body").send_keys("2")
        page.wait(lambda: "Not saved" in page.text("notice"))
        assert page.number == 5
    assert len(path.read_text().splitlines()) == 5
    with serving(path, 20) as (address, _):
        again = Page(driver, address)
        assert (again.number, again.text("labels")) == (5, "5")
        again.press("t")
    assert [json.loads(line)["choice"] for line in path.read_text().splitlines()] == ["left"] * 5 + ["tie"]


def test_a_thousand_pairs(tmp_path: Path, browsers: Callable[..., Any]) -> None:
    path = tmp_path / "l.jsonl"
    with session(path, source_of(1000)) as one, served(one) as asker:
        page = Page(browsers(), asker.server.address)
        begin = time.monotonic()
        page.driver.set_script_timeout(300)
        page.driver.execute_async_script(
            "const done = arguments[0]; (async () => { while (state.number !== null)"
            "  await choose(['left', 'right', 'tie'][state.number % 3]); done(); })();"
        )
        assert time.monotonic() - begin < 200
        assert (page.number, page.text("done"), page.text("total")) == (None, "1100", "1100")
    assert len(path.read_text().splitlines()) == 1100


LONG = "\n\n".join(f"Paragraph {i}: " + "a longer answer than anybody reads. " * 12 for i in range(400))
CODE = """To reverse a list, use a *slice*:

```python
def reversed_copy(items: list[int]) -> list[int]:
    return items[::-1]  # a very long line of code that has to scroll by itself instead of making the whole page wider
```

1. It is **short**.
2. It makes a copy: `O(n)`.

| way | copies |
|:--|--:|
| `items[::-1]` | 1 |
| `reversed(items)` | 0 |
"""
RIGHT_TO_LEFT = """שלום! הנה **שלושה** דברים:

- לחם
- חלב עם `code`

And this one is English.

مرحبا بالعالم
"""


def test_all_kinds_of_texts(tmp_path: Path, browsers: Callable[..., Any]) -> None:
    texts = [
        ("How do I reverse a list in Python?", CODE, "Use `items.reverse()`. It works **in place**."),
        ("מה לקנות?", RIGHT_TO_LEFT, "Bread."),
        ("Tell me everything.", LONG, "No."),
        (HOSTILE, HOSTILE, "harmless"),
    ]
    source = Source(pairs_of(texts), {"model": "tiny"}, 0, len(texts))
    with session(tmp_path / "l.jsonl", source) as one, served(one) as asker:
        page = Page(browsers(), asker.server.address)
        find = page.driver.execute_script

        def wide() -> bool:
            result: bool = find("return document.documentElement.scrollWidth > innerWidth")
            return result

        shot(page, "code")
        assert find("return [...document.querySelectorAll('.text pre code')].some(e => e.textContent.includes('def '))")
        assert not wide()
        page.press("1")
        shot(page, "right-to-left")
        directions = "return [...document.querySelectorAll('.text p')].map(e => getComputedStyle(e).direction)"
        assert sorted(find(directions)) == ["ltr", "ltr", "rtl", "rtl"]
        assert find("return getComputedStyle(document.querySelector('.text ul')).direction") == "rtl"
        page.press("2")
        shot(page, "long")
        assert not wide()
        assert find("return document.documentElement.scrollHeight <= innerHeight")  # the answers scroll, not the page
        assert find("return [...document.querySelectorAll('.text')].some(e => e.scrollHeight > 20 * e.clientHeight)")
        page.press("t")
        shot(page, "hostile")
        assert page.number == 3
        assert (
            find("return document.querySelectorAll('main script, main img, main a, main iframe, main b').length") == 0
        )
        assert "<script>steal()</script>" in page.text("pair")
        assert page.faults() == []
        page.press("s")
        shot(page, "end")


def test_a_script_that_got_into_the_page_would_not_run(tmp_path: Path, browsers: Callable[..., Any]) -> None:
    with session(tmp_path / "l.jsonl", source_of(3)) as one, served(one) as asker:
        page = Page(browsers(), asker.server.address)
        page.driver.execute_script(
            "document.querySelector('#left .text').innerHTML = '<img src=x onerror=\"window.stolen = 1\">';"
            "const own = document.createElement('script'); own.textContent = 'window.stolen = 2';"
            "document.body.append(own)"
        )
        time.sleep(0.3)
        assert page.driver.execute_script("return window.stolen") is None
        assert any("Content Security Policy" in fault for fault in page.faults())


def test_it_is_dark_where_the_person_likes_that(tmp_path: Path, browsers: Callable[..., Any]) -> None:
    texts = [("How do I reverse a list in Python?", CODE, "Use `items.reverse()`. It works **in place**.")]
    source = Source(pairs_of(texts), {"model": "tiny"}, 0, 1)
    with session(tmp_path / "l.jsonl", source) as one, served(one) as asker:
        page = Page(browsers("--blink-settings=preferredColorScheme=0"), asker.server.address)
        shot(page, "dark")
        colour = page.driver.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert max(map(int, re.findall(r"\d+", colour)[:3])) < 60
