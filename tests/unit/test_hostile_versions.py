"""Runs of a newer version of this package, and stages of other versions of the libraries."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from spa_recipes import __version__, api
from spa_recipes.errors import NewerVersionError, RecipeError
from spa_recipes.plan import Plan
from spa_recipes.report.card import versions
from spa_recipes.run import gc, reuse, worker
from spa_recipes.run.overview import overviews
from spa_recipes.run.rundir import VERSION, RunDir, find_reusable
from spa_recipes.run.runner import execute
from spa_recipes.stages.context import Context, StageSpec
from spa_recipes.state import user_state
from spa_recipes.state.versions import library_versions, others
from tests.kit.finished_runs import commit, make_run, manifests
from tests.kit.plans import plan_of
from tests.kit.stages import spec_of


class Told:
    """Keeps what a reporter is told."""

    def __init__(self) -> None:
        self.notices: list[str] = []

    def noticed(self, stage: object, text: str) -> None:
        self.notices.append(text)

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **facts: None


def newer_manifest(run: RunDir, plan: Plan) -> None:
    path = run.stage_dir(plan.stage("sft"), plan).path / "manifest.json"
    value = json.loads(path.read_text())
    del value["sha256"]
    value |= {"energy": 3.5, "versions": {"spa-recipes": "9.0.0"}}
    value["sha256"] = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(value))


def newer_plan(run: RunDir, plan: Plan) -> None:
    path = run.path / "plan.json"
    path.write_text(json.dumps([{**entry, "energy": 3.5} for entry in json.loads(path.read_text())]))
    (run.path / VERSION).write_text("9.0.0\n")


def newer_recipe(run: RunDir, plan: Plan) -> None:
    path = run.path / "resolved.json"
    value = json.loads(path.read_text())
    value["compute"]["energy"] = 3.5
    path.write_text(json.dumps(value))
    (run.path / VERSION).write_text("9.0.0\n")


NEWER = [newer_manifest, newer_plan, newer_recipe]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("accept", [False, True])
@pytest.mark.parametrize("make_newer", NEWER)
def test_a_run_of_a_newer_version_is_named_and_nothing_is_touched(
    tmp_path: Path, make_newer: Any, accept: bool
) -> None:
    plan = plan_of()
    run = make_run(tmp_path / "mini", plan)
    make_newer(run, plan)
    before = files(run.path)
    with pytest.raises(NewerVersionError, match=r"\A[^\n]*\Z") as caught:
        execute(plan, run, "", until=None, accept=accept, reporter=Told())
    line = str(caught.value)
    assert f"made by spa-recipes 9.0.0, a newer version; this is {__version__} and does not know" in line
    assert "energy" in line
    assert "upgrade spa-recipes" in line
    assert files(run.path) == before


@pytest.mark.parametrize("noted", [None, "", "\x1b[2J9.0", "9" * 100, "words"])
def test_a_newer_version_whose_number_nobody_noted(tmp_path: Path, noted: str | None) -> None:
    plan = plan_of()
    run = make_run(tmp_path / "mini", plan)
    newer_plan(run, plan)
    (run.path / VERSION).unlink()
    if noted is not None:
        (run.path / VERSION).write_text(noted)
    with pytest.raises(NewerVersionError, match="made by a newer version of spa-recipes; this is"):
        run.planned()


def test_a_run_notes_the_version_that_wrote_it(tmp_path: Path) -> None:
    plan = plan_of()
    run = make_run(tmp_path / "mini", plan)
    run.write_recipe("", plan.recipe, plan)
    assert run.written_by == __version__


@pytest.mark.parametrize("make_newer", NEWER)
def test_resume_without_a_name_says_which_run_it_passes_over(tmp_path: Path, make_newer: Any) -> None:
    plan = plan_of()
    for name in ("older", "newer"):
        run = make_run(tmp_path / name, plan)
        user_state.note_run(run.path)
        run.log_event("run stopped")
        shutil.rmtree(run.stage_dir(plan.stages[-1], plan).path)
    os.utime(tmp_path / "older" / "events.jsonl", (1e9, 1e9))
    make_newer(run, plan)
    found = api.newest_unfinished(tmp_path)
    assert found.run.name == "older"
    (line,) = found.passed_over
    assert line.startswith("newer was passed over: ")
    assert "made by spa-recipes 9.0.0" in line
    shutil.rmtree(tmp_path / "older")
    with pytest.raises(RecipeError, match=r"`spa status` says what is wrong with the others: newer"):
        api.newest_unfinished(tmp_path)


@pytest.mark.parametrize("make_newer", NEWER)
def test_garbage_of_a_newer_version_is_left_alone(tmp_path: Path, make_newer: Any) -> None:
    plan = plan_of()
    run = make_run(tmp_path / "mini", plan)
    run.stage_dir(plan.stage("sft"), plan).draft(1).mkdir()
    assert gc.find(run, models=False).items
    make_newer(run, plan)
    swept = gc.sweep([run], models=True)
    assert not swept[0].items
    assert "newer version" in swept[0].skipped


@pytest.mark.parametrize("make_newer", [newer_manifest, newer_plan])
def test_a_run_of_a_newer_version_is_listed_with_the_others(tmp_path: Path, make_newer: Any) -> None:
    plan = plan_of()
    make_newer(make_run(tmp_path / "newer", plan), plan)
    make_run(tmp_path / "ours", plan)
    listed = {each.name: each for each in overviews(tmp_path)}
    assert listed["ours"].state == "done"
    assert "newer version" in listed["newer"].note


def test_a_stage_of_a_newer_version_is_not_taken_over(tmp_path: Path) -> None:
    plan, run = plan_of(), RunDir(tmp_path / "mini")
    newer_manifest(make_run(tmp_path / "newer", plan), plan)
    assert find_reusable(tmp_path, plan.stage("sft"), besides=run, whose="all") is None


# --- other libraries


def test_only_libraries_that_compute_are_compared() -> None:
    now = {"torch": "2.13.0", "trl": "1.0.0", "spa-recipes": "0.2.0"}
    assert others({"torch": "2.12.0", "trl": "1.0.0", "spa-recipes": "0.1.0"}, now) == {"torch": "2.12.0"}
    assert others({}, now) == {}


def test_a_stage_taken_over_from_other_libraries_says_so(tmp_path: Path) -> None:
    plan, other, run = plan_of(storage={"reuse": "all"}), RunDir(tmp_path / "other"), RunDir(tmp_path / "mini")
    commit(other, plan, "sft", versions={**library_versions(), "torch": "1.0.0"})
    (run.path / "stages").mkdir(parents=True)
    told = Told()
    adopted = reuse.reuse(plan, run, told, plan.stage("sft"))
    assert adopted is not None
    assert told.notices == [
        f"it was made with torch 1.0.0, and the other stages run with torch {library_versions()['torch']}"
    ]
    assert "torch 1.0.0" in (run.path / "events.jsonl").read_text()
    commit(run, plan, "data", versions=library_versions())
    table = dict(versions(manifests(run, plan)))
    assert "1.0.0 (sft)" in table["torch"]


def test_a_stage_that_goes_on_with_other_libraries_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    from spa_recipes.stages.context import Result

    folder = tmp_path / "stages" / "00-data"
    first = Context(spec_of(folder, "data", {}, {}))
    (folder / "attempts" / "1" / worker.VERSIONS).write_text(json.dumps({**library_versions(), "torch": "1.0.0"}))
    (first.work / "shards").mkdir()
    (folder / "attempts" / "2").mkdir()
    spec = StageSpec(**{**first.spec.__dict__, "attempt": 2})
    stage = types.SimpleNamespace(run=lambda context: Result(1, 0, {}))
    monkeypatch.setitem(sys.modules, "spa_recipes.stages.data", stage)
    assert worker.run_stage(spec) == 0
    notices = (folder / "attempts" / "2" / "progress.jsonl").read_text()
    assert f"goes on under torch {library_versions()['torch']} with what was begun under torch 1.0.0" in notices
    manifest = first.folder.manifest()
    assert manifest is not None
    assert manifest.begun_with == {"torch": "1.0.0"}
    assert "begun under 1.0.0" in dict(versions({"data": manifest}))["torch"]


def test_a_stage_that_begins_again_was_begun_with_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "stages" / "00-data"
    context = Context(spec_of(folder, "data", {}, {}))
    (folder / "attempts" / "2").mkdir()
    (folder / "attempts" / "2" / worker.VERSIONS).write_text(json.dumps({"torch": "1.0.0"}))
    assert worker._begun_with(context) == {}
