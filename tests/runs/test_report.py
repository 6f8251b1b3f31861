"""`spa report` and `spa compare` on a real miniature run: complete, self-contained, and nothing in it is invented."""

import html.parser
import json
import re
import shutil
from pathlib import Path

import pytest

from spa_recipes.data.rows import read_jsonl
from tests.kit.cli import run_spa
from tests.kit.recipes import mini, write_recipe
from tests.kit.runs import metrics


@pytest.fixture(scope="module")
def home(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    shutil.copytree(finished / "runs" / "mini", folder / "runs" / "before", symlinks=True)  # to take over from
    # An answer of the world never holds markup; the recipe's own text may.
    write_recipe(folder / "mini.yaml", mini(description="A <b>bold</b> & small run", noise={"warmup_ratio": 0.0}))
    done = run_spa(folder, "run", "mini.yaml")
    assert done.returncode == 0, done.stderr
    return folder


class _Page(html.parser.HTMLParser):
    """Text, addresses and balance of a page."""

    VOID = frozenset({"meta", "line", "circle", "polyline", "polygon", "br"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_page_is_whole_and_needs_no_network(home: Path) -> None:
    done = run_spa(home, "report", "mini")
    assert done.returncode == 0, done.stderr
    assert "report: runs/mini/report.html" in done.stdout
    page = (home / "runs" / "mini" / "report.html").read_text()
    parsed = _Page(page)
    assert parsed.open == []
    assert all(address.startswith("#") for address in parsed.addresses)
    assert "<script" not in page
    assert not re.search(r"@import|url\(|https?://", page)
    assert "<b>bold</b>" not in page
    assert "A <b>bold</b> & small run" in "".join(parsed.texts)
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page


def test_its_figures_are_those_of_the_run(home: Path) -> None:
    assert run_spa(home, "report", "mini", "--out", "other.html").returncode == 0
    page = _Page((home / "other.html").read_text())
    text = " ".join(" ".join(page.texts).split())
    for i in range(3):
        assert f"{metrics(home, f'evaluate-{i}')['win_rate_vs_init']:.1%}" in text
        assert f"{metrics(home, f'evaluate-{i}')['heldout_accuracy']:.1%}" in text
    for i in (1, 2):
        assert f"{metrics(home, f'judge-{i}')['accuracy_vs_gold']:.1%}" in text
        assert f"{metrics(home, f'refine-{i}')['flagged_of_all']:.1%}" in text
    stages = home / "runs" / "mini" / "stages"
    before, after = (
        {row["prompt_id"]: row for row in reversed(read_jsonl(next(stages.glob(f"*-{name}-*/output/samples.jsonl"))))}
        for name in ("evaluate-init", "evaluate-2")
    )
    changes = sorted(before, key=lambda prompt: after[prompt]["reward"] - before[prompt]["reward"])
    for of in (before, after):  # the middle of the first of four parts
        assert " ".join(of[changes[len(changes) // 8]]["response"].split()) in text
    (pairs,) = stages.glob("*-judge-1-*/output/pairs.jsonl")
    (trace,) = stages.glob("*-refine-1-*/output/model/pairs_trace.jsonl")
    flagged = [row for row in map(json.loads, trace.read_text().splitlines()) if row["flagged"]]
    doubted = min(flagged, key=lambda row: row["p_detect"])
    pair = json.loads(pairs.read_text().splitlines()[doubted["row"]])
    assert " ".join(pair["rejected"][0]["content"].split()) in text
    for stage in ("data", "sft", "seed", "generate-1", "score-2-reference", "judge-2", "refine-2"):
        assert stage in text


def test_compare_puts_policies_side_by_side(home: Path) -> None:
    write_recipe(home / "seed.yaml", mini(name="seed-only", data={"prompts_per_iteration": []}))
    assert run_spa(home, "run", "seed.yaml").returncode == 0
    done = run_spa(home, "compare", "mini", "seed-only", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [(line["run"], line["policy"]) for line in found] == [
        ("mini", "pi_init"), ("mini", "pi_0"), ("mini", "pi_1"), ("mini", "pi_2"),
        ("seed-only", "pi_init"), ("seed-only", "pi_0"),
    ]  # fmt: skip
    assert found[3]["win_rate"] == metrics(home, "evaluate-2")["win_rate_vs_init"]
    assert found[1] == {**found[5], "run": "mini"}
    assert [line["labels"] for line in found[:4]] == [0, 60, 60, 60]
    steps = [sum(metrics(home, stage)["steps"] for stage in ("seed", "refine-1", "refine-2"))]
    assert found[3]["steps"] == steps[0]
    shown = run_spa(home, "compare", "mini", "seed-only")
    assert f"{found[3]['win_rate']:.1%}" in shown.stdout
    assert "win rate" in shown.stdout


def test_an_unfinished_run_has_a_report_and_an_unknown_one_has_not(home: Path, tmp_path: Path) -> None:
    write_recipe(tmp_path / "mini.yaml", mini())
    assert run_spa(tmp_path, "run", "mini.yaml", "--until", "data").returncode == 0
    assert run_spa(tmp_path, "report", "mini").returncode == 0
    assert "No policy was evaluated" in (tmp_path / "runs" / "mini" / "report.html").read_text()
    refused = run_spa(tmp_path, "compare", "mini")
    assert refused.returncode == 2
    assert "nothing is evaluated in mini" in refused.stderr
    for command in ("report", "compare"):
        assert run_spa(tmp_path, command, "nobody").returncode == 2
    missing = run_spa(home, "report", "mini", "--out", "no/such/folder.html")
    assert missing.returncode == 2
    assert "no/such/folder.html: cannot be written" in missing.stderr
