"""Stages of runs that somebody else made: they are taken over where the user says so, and otherwise done again."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from spa_recipes import api
from spa_recipes.plan import Plan, Stage
from spa_recipes.run.reuse import reuse, say_what_others_have
from spa_recipes.run.rundir import RunDir
from spa_recipes.state.user_state import MARK
from tests.kit.garbage import make_run
from tests.kit.plans import plan_of


class Heard:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.notices: list[tuple[str, str]] = []
        self.taken: list[str] = []

    def noticed(self, stage: Stage, text: str) -> None:
        self.notices.append((stage.id, text))

    def reused(self, stage: Stage, manifest: Any, *, adopted: bool) -> None:
        self.taken += [stage.id] * adopted

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def second_run(runs: Path, plan: Plan) -> tuple[RunDir, Heard]:
    """Another run with the same stages begins."""
    run, heard = RunDir(runs / "second"), Heard()
    run.write_recipe("text", plan.recipe, plan)
    say_what_others_have(plan, run, heard, plan.stages)
    for stage in plan.stages:
        reuse(plan, run, heard, stage)
    return run, heard


def from_elsewhere(runs: Path, plan: Plan, name: str = "mini") -> RunDir:
    """A whole run as somebody may send it; its mark is not one of this user's."""
    run = make_run(runs, plan)
    (run.path / MARK).write_text("0" * 64)
    return run


def test_a_run_of_ones_own_is_used_also_after_it_was_moved(tmp_path: Path) -> None:
    plan = plan_of()
    run = make_run(tmp_path / "before", plan)
    (tmp_path / "runs").mkdir()
    shutil.copytree(run.path, tmp_path / "runs" / "copied", symlinks=True)
    _, heard = second_run(tmp_path / "runs", plan)
    assert heard.taken == [stage.id for stage in plan.stages]
    assert heard.notices == []


@pytest.mark.parametrize("mark", ["of somebody else", "none"])
def test_a_run_of_somebody_else_is_not_used_and_one_line_says_so(tmp_path: Path, mark: str) -> None:
    plan = plan_of()
    other = from_elsewhere(tmp_path / "runs", plan)
    if mark == "none":
        (other.path / MARK).unlink()
    run, heard = second_run(tmp_path / "runs", plan)
    assert heard.taken == []
    ((_, text),) = heard.notices
    assert text == (
        f"run {other.name}, which you did not start, has {len(plan.stages)} of the stages: they are done again "
        "(storage.reuse: all takes them over)"
    )
    assert text in (run.path / "events.jsonl").read_text()


def test_it_is_used_where_the_recipe_says_so(tmp_path: Path) -> None:
    plan = plan_of(storage={"reuse": "all"})
    from_elsewhere(tmp_path / "runs", plan)
    _, heard = second_run(tmp_path / "runs", plan)
    assert heard.taken == [stage.id for stage in plan.stages]
    assert heard.notices == []


def test_the_plan_says_who_has_a_stage(tmp_path: Path) -> None:
    plan = plan_of()
    other = from_elsewhere(tmp_path / "runs", plan)
    views = api.plan_view(api.Prepared(plan, RunDir(tmp_path / "runs" / "second"), ""))
    assert {view.state for view in views} == {"to do"}
    assert f"run {other.name}, which you did not start, has it (storage.reuse)" in views[0].why
    plan = plan_of(storage={"reuse": "all"})
    views = api.plan_view(api.Prepared(plan, RunDir(tmp_path / "runs" / "second"), ""))
    assert {view.state for view in views} == {f"in {other.name}"}
