"""What is printed of several stages at a time, and of what a stage waits for."""

import json
from pathlib import Path

import pytest

from spa_recipes import api
from spa_recipes.cli import progress
from spa_recipes.cli.plan import print_plan, print_plan_json
from spa_recipes.cli.progress import PlainReporter
from spa_recipes.run.rundir import RunDir
from spa_recipes.state.stagedir import Manifest
from tests.kit.plans import plan_of
from tests.kit.state import FIELDS


def test_stages_that_run_at_a_time_have_a_bar_each() -> None:
    plan, reporter = plan_of(), PlainReporter()
    first, second = plan.stage("evaluate-init"), plan.stage("seed")
    reporter._bar = bar = progress._new_bar()  # as on a terminal
    reporter.started(first, 1)
    reporter.progress(second, 3, 8, "steps", "")  # its start waits to be told until the first one has ended
    reporter.progress(first, 1, 4, "answers", "")
    assert [(task.description, task.completed, task.total) for task in bar.tasks] == [
        ("evaluate-init", 1, 4),
        ("seed", 3, 8),
    ]
    reporter.finished(first, Manifest(files={}, **FIELDS))
    reporter.started(second, 2)
    assert [(task.description, task.completed) for task in bar.tasks] == [("seed (attempt 2)", 3)]


def test_the_plan_says_what_a_stage_waits_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_of(evaluation={"max_judge_decay": 0.02})
    prepared = api.Prepared(plan, RunDir(tmp_path / "mini"), "")
    print_plan(prepared, diff=False, verbose=True)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "evaluate-1" in line and "waits" in line]
    assert line.split() == ["waits", "for", "evaluate-1"]
    print_plan_json(prepared)
    stages = {stage["id"]: stage["waits_for"] for stage in json.loads(capsys.readouterr().out)}
    assert stages["generate-2"] == ["refine-1", "data", "evaluate-1"]
    assert stages["base"] == []
