"""A stage that does nothing is mentioned, with its last step and where it stands, and is ended only if asked."""

import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from spa_recipes.cli.status import print_run_status, print_runs
from spa_recipes.errors import TryAgainError
from spa_recipes.plan import Stage, compile_plan
from spa_recipes.recipe.schema import Recipe
from spa_recipes.run import processes, stall
from spa_recipes.run.rundir import RunDir
from spa_recipes.run.runner import execute
from spa_recipes.state.digests import DigestMemo
from spa_recipes.state.marker import MARKER
from spa_recipes.state.stagedir import StageDir
from tests.kit.recipes import mini
from tests.runs.test_bad_ends import LINUX, BadEnd, Silent

pytestmark = LINUX

LIMIT = 0.02
"""Minutes without progress."""

HANGS = """
    import time
    def a_collective_that_waits():
        while not os.path.exists(os.path.join(context.spec.stage_dir, "go_on")):
            time.sleep(0.05)
    context._tell({"done": 3, "total": 8, "unit": "steps", "note": ""})
    context.watchdog.feed()
    a_collective_that_waits()
    raise ValueError("it went on")
"""
FROZEN = "os.kill(os.getpid(), signal.SIGSTOP)"


class Listener(Silent):
    """Keeps the notices; does something at the first one."""

    def __init__(self, at_notice: Any = None) -> None:
        self.notices: list[str] = []
        self._at_notice = at_notice

    def noticed(self, stage: Stage, text: str) -> None:
        self.notices.append(text)
        if self._at_notice is not None:
            self._at_notice()


def run_of(folder: Path, body: str, reporter: Any, **compute: Any) -> RunDir:
    plan = compile_plan(
        Recipe.model_validate(mini(compute={"stall_minutes": LIMIT, **compute})), DigestMemo(folder / "memo")
    )
    run = RunDir(folder / "runs" / "mini")
    execute(plan, run, "name: mini\n", until="data", accept=False, reporter=reporter, executors=BadEnd(body))
    return run


def events(folder: Path, name: str) -> Sequence[dict[str, Any]]:
    lines = (folder / "runs" / "mini" / "events.jsonl").read_text().splitlines()
    return [event for line in lines if (event := json.loads(line))["event"] == name]


def test_a_stage_that_hangs_is_told_once_with_its_last_step_and_its_stack(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs").mkdir()

    def look_and_let_it_go_on() -> None:
        print_run_status("mini", tmp_path / "runs")
        print_runs(tmp_path / "runs")
        (stage,) = (tmp_path / "runs" / "mini" / "stages").glob("*-data-*")
        threading.Timer(1.0, (stage / "go_on").touch).start()

    listener = Listener(look_and_let_it_go_on)
    with pytest.raises(Exception, match="it went on"):
        run_of(tmp_path, HANGS, listener)
    (notice,) = listener.notices
    assert "no progress for 1." in notice
    assert "last: 3 of 8 steps" in notice
    assert "a_collective_that_waits" in notice
    assert "stack-0.txt" in notice
    (event,) = events(tmp_path, "no progress")
    assert (event["stage"], event["text"]) == ("data", notice)
    line, listed = [line for line in capsys.readouterr().out.splitlines() if "no progress" in line]
    assert listed.startswith("mini")
    assert "data has made no progress for 1." in listed
    assert "3 of 8 steps" in line
    assert "a_collective_that_waits" in line


def test_a_stage_that_hangs_is_ended_if_the_recipe_asks(tmp_path: Path) -> None:
    with pytest.raises(TryAgainError, match=r"data: no progress.*a_collective_that_waits.*end_stalled"):
        run_of(tmp_path, HANGS, Listener(), end_stalled=True)
    assert len(events(tmp_path, "no progress")) == 1


def test_a_frozen_process_is_told_without_a_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stall, "STACK_PATIENCE", 0.1)
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.1)  # it does not hear SIGTERM
    listener = Listener()
    with pytest.raises(TryAgainError, match="has not said where it stands"):
        run_of(tmp_path, FROZEN, listener, end_stalled=True)
    assert "last: nothing yet" in listener.notices[0]


def test_null_watches_no_stage(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="done here"):
        run_of(
            tmp_path, "assert context.watchdog is None; raise ValueError('done here')", Listener(), stall_minutes=None
        )


def test_an_attempt_from_before_is_not_the_one_that_runs(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "mini")
    attempt = StageDir(run.path / "stages" / "00-data-12345678").new_attempt()
    (attempt / "spec.json").write_text("{}")
    os.utime(attempt / "spec.json", (1e9, 1e9))
    (run.path / MARKER).write_text("run\n")
    with run.locked():
        assert run.status_unfinished(StageDir(attempt.parents[1])) == "interrupted"
        os.utime(attempt / "spec.json")
        assert run.status_unfinished(StageDir(attempt.parents[1])) == "running"
