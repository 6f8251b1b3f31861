"""A run with two chains of policies, through the command line, killed in the peer's training and resumed."""

import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from spa_recipes.data.rows import read_jsonl
from spa_recipes.run.final import model_shown
from spa_recipes.run.rundir import RunDir
from tests.kit.cli import run_spa, start
from tests.kit.processes import processes_of, wait_for
from tests.kit.recipes import mini, write_recipe
from tests.kit.runs import metrics
from tests.kit.training import weights

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
]

RATE = 0.5
RECIPE = mini(
    seed_training={"members": {"count": 2, "share": "bootstrap"}},
    judge={"peers": {"forget_rate": RATE}},
)


def output(folder: Path, stage: str) -> Path:
    (path,) = (folder / "runs" / "mini" / "stages").glob(f"[0-9][0-9]-{stage}-????????/output")
    return path


@pytest.fixture(scope="module")
def taught(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of the finished run, and what was printed at its end."""
    folder = tmp_path_factory.mktemp("peers")
    shutil.copytree(finished / "runs" / "mini", folder / "runs" / "before", symlinks=True)  # to take over from
    write_recipe(folder / "mini.yaml", RECIPE)
    running = start(folder, "run", "mini.yaml")
    stages = folder / "runs" / "mini" / "stages"
    wait_for(lambda: [*stages.glob("[0-9][0-9]-refine-1-b-????????/attempts/1/progress.jsonl")])
    assert running.kill() == -signal.SIGKILL
    wait_for(lambda: not processes_of(folder))
    done = run_spa(folder, "resume")
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def logps(path: Path) -> dict[tuple[int, int], float]:
    return {(row["item"], row["sample"]): row["logp"] for row in pq.read_table(path / "logps.parquet").to_pylist()}


@pytest.mark.parametrize(("end", "rate"), [("1", RATE / 2), ("1-b", RATE / 2), ("2", RATE)])
def test_a_chain_learns_from_the_pairs_that_its_peer_finds_easiest(
    taught: tuple[Path, str], end: str, rate: float
) -> None:
    folder, _ = taught
    number, mark = end[0], end[1:]
    answers = pq.read_table(output(folder, f"generate-{end}") / "completions.parquet").to_pylist()
    own = {(row["item"], row["sample"]): sum(row["logps"]) for row in answers}
    reference, peer = (logps(output(folder, f"score-{number}-{role}{mark}")) for role in ("reference", "peer"))
    texts = {(row["item"], row["sample"]): row["text"].strip() for row in answers}
    margins = {}
    for item in sorted({row["item"] for row in answers}):
        if not all(texts[item, k] for k in (0, 1)) or texts[item, 0] == texts[item, 1]:
            continue
        first = own[item, 0] - reference[item, 0] > own[item, 1] - reference[item, 1]
        chosen, rejected = (0, 1) if first else (1, 0)
        margins[item] = (peer[item, chosen] - reference[item, chosen]) - (
            peer[item, rejected] - reference[item, rejected]
        )
    count = round((1 - rate) * len(margins))
    easiest = sorted(margins, key=lambda item: margins[item])[-count:]
    judgments: list[dict[str, Any]] = read_jsonl(output(folder, f"judge-{end}") / "judgments.jsonl")
    assert [row["item"] for row in judgments] == sorted(easiest)
    told = metrics(folder, f"judge-{end}")
    assert told["dropped_by_peer"] == len(margins) - count > 0
    assert told["peer_agreement"] == pytest.approx(sum(m > 0 for m in margins.values()) / len(margins))
    if end != "2":
        assert metrics(folder, f"refine-{end}")["steps"] == -(-count // 16)


def test_the_run_is_that_of_its_own_chain(taught: tuple[Path, str]) -> None:
    folder, printed = taught
    run = RunDir(folder / "runs" / "mini")
    assert "refine-2-" in str(model_shown(run.final))
    own, peer = (weights(output(folder, f"refine-1{mark}") / "model") for mark in ("", "-b"))
    assert any(bool((own[name] != peer[name]).any()) for name in own)
    pairs = [line for line in printed.splitlines() if line.startswith("pairs:")]
    assert ["-judge-1-b-" in line for line in pairs] == [False, False]
    assert "This is pi_2" in (run.final / "README.md").read_text()


def test_the_peer_is_told_in_words(taught: tuple[Path, str]) -> None:
    folder, _ = taught
    shown = run_spa(folder, "status", "mini").stdout
    (line,) = [line for line in shown.splitlines() if " judge-1-b " in f" {line} "]
    assert "dropped by the peer" in line
    assert "the peer agrees" in line
    report = run_spa(folder, "report", "mini")
    assert report.returncode == 0, report.stderr
    page = (folder / "runs" / "mini" / "report.html").read_text()
    assert "refine-1-b: pi_1^(b): refined DPO on the judged pairs, from pi_0^(1)" in page
    assert "labels that the peer would give, too" in page
