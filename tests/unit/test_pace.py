"""How far a stage is: `spa status` of a running run, and lines of progress where there is no terminal."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from spa_recipes.cli import status
from spa_recipes.cli.progress import PlainReporter
from spa_recipes.run.pace import Pace, pace_of, pace_of_attempt
from spa_recipes.run.rundir import RunDir
from spa_recipes.state import marker
from tests.kit.plans import plan_of


def line(done: int, seconds: float, note: str = "", total: int = 100) -> dict[str, Any]:
    return {"done": done, "total": total, "unit": "steps", "note": note, "time": seconds}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the clock shows."""
    shown = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: shown[0])
    return shown


def test_the_rate_is_that_of_this_attempt() -> None:
    went_on = [line(40, 10.0), {"notice": "x"}, line(50, 15.0, "loss 0.6"), line(60, 20.0)]
    assert pace_of(went_on) == Pace(60, 100, "steps", "loss 0.6", 2.0)
    assert str(pace_of(went_on)) == "60 of 100 steps, loss 0.6, 2 steps/s, about 20 s left"
    assert str(pace_of([line(1, 0.0), line(3, 60.0)])) == "3 of 100 steps, 30 s per step, about 48 min 30 s left"


@pytest.mark.parametrize("before", [{"unit": "responses"}, {"total": 90}, {"done": 99}])
def test_the_time_of_other_work_does_not_count(before: dict[str, Any]) -> None:
    reference = [{**line(2, 0.0, "reference"), **before}, {**line(4, 400.0, "reference"), **before}]
    assert str(pace_of([*reference, line(5, 410.0)])) == "5 of 100 steps"
    told = [*reference, line(5, 410.0), line(6, 420.0, "loss 0.6"), line(9, 450.0)]
    assert str(pace_of(told)) == "9 of 100 steps, loss 0.6, 10 s per step, about 15 min 10 s left"


def test_without_a_second_line_nothing_is_foretold() -> None:
    assert str(pace_of([line(7, 3.0)])) == "7 of 100 steps"
    assert pace_of([{"notice": "x"}]) is None
    assert str(pace_of([{**line(7, 0.0), "time": 0.0}, line(9, 0.0)])) == "9 of 100 steps"


def test_the_furthest_process_counts(tmp_path: Path) -> None:
    for name, done in (("progress.jsonl", 5), ("progress-1.jsonl", 9)):
        (tmp_path / name).write_text(json.dumps(line(done, 1.0)) + "\n" + '{"done": ')
    found = pace_of_attempt(tmp_path)
    assert found is not None
    assert found.done == 9


def test_without_a_terminal_lines_come_at_a_sensible_pace(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    stage, reporter = plan_of().stage("seed"), PlainReporter()
    for second in range(200):
        clock[0] = float(second)
        reporter.progress(stage, second, 200, "steps", "loss 0.5" if second == 5 else "")
    reporter.progress(stage, 200, 200, "steps", "")
    lines = capsys.readouterr().out.splitlines()
    assert [text.split()[1] for text in lines] == ["10", "70", "130", "190"]
    assert lines[1].split(maxsplit=1)[1] == "70 of 200 steps, loss 0.5, 1 steps/s, about 2 min 10 s left"


def test_a_line_tells_the_pace_of_what_is_done_now(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    stage, reporter = plan_of().stage("seed"), PlainReporter()
    for second, done, total, unit in ((0, 0, 50, "responses"), (400, 50, 50, "responses"), (410, 1, 30, "steps")):
        clock[0] = float(second)
        reporter.progress(stage, done, total, unit, "reference" if unit == "responses" else "")
    for done in range(2, 10):
        clock[0] += 10
        reporter.progress(stage, done, 30, "steps", "")
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.split(maxsplit=1)[1] == "7 of 30 steps, 10 s per step, about 3 min 50 s left"


def test_a_running_run_is_not_to_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, run = plan_of(), RunDir(tmp_path / "runs" / "mini")
    marker.claim(run.path, run.kind)
    run.write_recipe("name: mini\n", plan.recipe, plan)
    with run.locked():
        attempt = run.stage_dir(plan.stage("data"), plan).new_attempt()
        (attempt / "spec.json").write_text("{}")
        (attempt / "progress.jsonl").write_text(json.dumps(line(1, 1.0)) + "\n" + json.dumps(line(2, 2.0)) + "\n")
        status.print_run_status("mini", run.path.parent)
        shown = capsys.readouterr().out
        assert "2 of 100 steps, 1 steps/s, about 1 min 38 s left" in shown
        assert "--follow" in shown
        assert "spa resume" not in shown
        naps = []

        def nap(seconds: float) -> None:
            naps.append(seconds)
            (attempt / "progress.jsonl").write_text(json.dumps(line(1, 1.0)) + "\n" + json.dumps(line(4, 4.0)) + "\n")
            if len(naps) == 2:
                monkeypatch.setattr(RunDir, "holder", lambda self: None)

        monkeypatch.setattr(time, "sleep", nap)
        status.follow("mini", run.path.parent)
    shown = capsys.readouterr().out
    assert "data               running: 4 of 100 steps" in shown
    assert "`spa resume" in shown.splitlines()[-1]
