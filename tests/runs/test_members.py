"""A run with members, through the command line: what their agreement tells, where it is told, and what it stops."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from spa_recipes.data.rows import read_jsonl
from tests.kit.cli import run_spa
from tests.kit.recipes import mini, write_recipe
from tests.kit.runs import metrics


@pytest.fixture(scope="module")
def stopped(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run that gets members and a rule that no judge fulfils, and what was printed."""
    folder = tmp_path_factory.mktemp("members")
    shutil.copytree(finished / "runs" / "mini", folder / "runs" / "before", symlinks=True)  # to take over from
    rule = {"min_judge_reliability": 0.99}
    write_recipe(folder / "mini.yaml", mini(seed_training={"members": {"count": 2}}, evaluation=rule))
    done = run_spa(folder, "run", "mini.yaml")
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def output(folder: Path, stage: str) -> Path:
    (path,) = (folder / "runs" / "mini" / "stages").glob(f"*-{stage}-*/output")
    return path


def test_the_run_stops_before_the_training_and_says_why(stopped: tuple[Path, str]) -> None:
    folder, printed = stopped
    assert "stopped before refine-1: the judge's reliability by the agreement of its members is" in printed
    assert not [*(folder / "runs" / "mini" / "stages").glob("*-refine-*")]
    assert "This is pi_0" in (folder / "runs" / "mini" / "final" / "README.md").read_text()


def test_members_are_trained_on_halves_and_all_else_is_taken_over(stopped: tuple[Path, str]) -> None:
    folder, printed = stopped
    trained = [line.split()[0] for line in printed.splitlines() if " loss " in line and "reused" not in line]
    assert [name for name in trained if name.startswith("seed")] == ["seed-member1", "seed-member2"]
    assert [metrics(folder, f"seed-member{m}")["steps"] for m in (1, 2)] == [2, 2]  # 30 labels, 16 at a time


def test_reliability_is_told_beside_the_accuracy_on_held_out_labels(stopped: tuple[Path, str]) -> None:
    folder, printed = stopped
    told = metrics(folder, "reliability-1")
    rows: list[dict[str, Any]] = read_jsonl(output(folder, "reliability-1") / "margins.jsonl")
    agreed = sum(one * two > 0 for one, two in (row["margins"] for row in rows)) / len(rows)
    assert told["member_agreement"] == pytest.approx(agreed)
    assert 0.0 <= told["member_accuracy_vs_gold"] <= 1.0
    words = f"{told['reliability']:.1%}" if told["reliability"] > 0.5 else "no better than chance"
    line = f"judge reliability on its own samples, by the agreement of members: pi_0 {words}"
    shown = run_spa(folder, "status", "mini").stdout
    card = (folder / "runs" / "mini" / "final" / "README.md").read_text()
    assert line in printed
    assert line in shown
    assert "judge accuracy on held-out labelled pairs: pi_0" in shown
    assert f"judge reliability by the agreement of members, without gold | {words} |" in card
    if told["reliability"] < 0.6:
        assert "warning: the labels of judge-1 are hardly to be trusted" in shown
