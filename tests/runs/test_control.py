"""`spa run --with-control` on a run that is finished: what comes to it, what stays, and what it says."""

import json
from pathlib import Path

import pytest

from tests.kit.cli import run_spa
from tests.kit.runs import metrics, output, outputs, stage_dir


@pytest.fixture(scope="module")
def said(home: Path) -> str:
    """What the command says about a finished run; all that was there before stays as it was."""
    before = outputs(home)
    steps = [json.loads((stage_dir(home, name) / "manifest.json").read_text())["metrics"]["steps"] for name in CHAIN]
    done = run_spa(home, "run", "mini.yaml", "--with-control")
    assert done.returncode == 0, done.stderr + done.stdout
    after = outputs(home)
    assert {name: after[name] for name in before} == before
    assert {name.split("/")[0][3:-9] for name in after.keys() - before.keys()} == {"control", "evaluate-control"}
    assert metrics(home, "control")["steps"] == sum(steps)
    return done.stdout


CHAIN = ("seed", "refine-1", "refine-2")


def test_it_says_whether_the_iterations_helped(home: Path, said: str) -> None:
    (line,) = [line for line in said.splitlines() if line.startswith("beside the control")]
    figures = metrics(home, "evaluate-control")
    assert f"{100 * figures['spa_gain']:.1f} points higher" in line
    assert figures["spa_gain_low"] <= figures["spa_gain"] <= figures["spa_gain_high"]
    status = run_spa(home, "status", "mini").stdout
    assert line in status
    assert (home / "runs" / "mini" / "final" / "README.md").read_text().count("eside the control") == 1
    run_spa(home, "report", "mini")
    page = (home / "runs" / "mini" / "report.html").read_text()
    assert "Beside the control" in page
    assert "pi_control" not in page


def test_the_difference_is_that_of_the_prompts(home: Path, said: str) -> None:
    def rewards(stage: str) -> list[float]:
        return [json.loads(row)["reward"] for row in output(home, stage, "samples.jsonl").read_text().splitlines()]

    init, spa, control = (rewards(f"evaluate-{name}") for name in ("init", "2", "control"))
    wins = [[0.5 if a == b else float(a > b) for a, b in zip(ours, init, strict=True)] for ours in (spa, control)]
    figures = metrics(home, "evaluate-control")
    assert figures["spa_gain"] == pytest.approx(sum(wins[0]) / len(init) - sum(wins[1]) / len(init))
    assert figures["win_rate_vs_init"] == pytest.approx(sum(wins[1]) / len(init))


def test_the_newest_policy_is_still_that_of_spa(home: Path, said: str) -> None:
    card = json.loads((home / "runs" / "mini" / "final" / ".shown.json").read_text())
    assert "refine-2" in card["model"]
    rate = metrics(home, "evaluate-2")["win_rate_vs_init"]
    assert f"win rate {rate:.1%}" in run_spa(home, "status").stdout
    compared = json.loads(run_spa(home, "compare", "mini", "--json").stdout)
    assert [line["policy"] for line in compared] == ["pi_init", "pi_0", "pi_1", "pi_2", "control"]
    assert compared[-1]["labels"] == compared[1]["labels"]
    assert compared[-1]["steps"] == compared[-2]["steps"]


def test_the_divergence_of_a_judge_is_that_of_its_own_answers(home: Path) -> None:
    rows = [json.loads(row) for row in output(home, "judge-1", "judgments.jsonl").read_text().splitlines()]
    both = [pair for row in rows for pair in zip(row["policy_logps"], row["reference_logps"], strict=True)]
    figures = metrics(home, "judge-1")
    assert figures["dropped_identical"] + figures["dropped_empty"] == 0
    assert figures["sampled_kl_to_init"] == pytest.approx(sum(ours - theirs for ours, theirs in both) / len(both))
    assert 0 <= metrics(home, "evaluate-2")["refusals"] <= 1
