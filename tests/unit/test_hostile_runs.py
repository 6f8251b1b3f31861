"""One bad folder among the runs: the others are listed, cleared and resumed, and the bad one is told alone."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from spa_recipes import api
from spa_recipes.errors import RecipeError
from spa_recipes.run import gc
from spa_recipes.run.overview import overviews
from spa_recipes.run.rundir import RunDir, all_runs
from spa_recipes.state import usage
from spa_recipes.state.stagedir import MANIFEST, _fields_digest
from tests.kit.cli import one_error
from tests.kit.garbage import leave_temporary, make_run
from tests.kit.plans import plan_of

DEEP = "[" * 200_000
Damage = Callable[[RunDir], object]


def forged(run: RunDir, **fields: Any) -> None:
    """Change fields of every manifest, with a digest that fits."""
    for path in run.path.glob(f"stages/*/{MANIFEST}"):
        value = json.loads(path.read_text())
        del value["sha256"]
        value |= fields
        path.write_text(json.dumps({**value, "sha256": _fields_digest(value)}))


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def altered_plan(run: RunDir, **fields: Any) -> None:
    entries = json.loads((run.path / "plan.json").read_text())
    (run.path / "plan.json").write_text(json.dumps([{**entry, **fields} for entry in entries]))


DAMAGES: dict[str, Damage] = {
    "a deep plan": lambda run: (run.path / "plan.json").write_text(DEEP),
    "a plan that is no list": lambda run: (run.path / "plan.json").write_text("{}"),
    "a plan of numbers": lambda run: (run.path / "plan.json").write_text("[1, 2]"),
    "a plan that is not UTF-8": lambda run: (run.path / "plan.json").write_bytes(b'["\xff"]'),
    "a pipe for a plan": lambda run: a_pipe(run.path / "plan.json"),
    "a stage of an unknown kind": lambda run: altered_plan(run, kind="divination"),
    "a kind that is a list": lambda run: altered_plan(run, kind=[]),
    "inputs that are a number": lambda run: altered_plan(run, inputs=1),
    "an id that leads elsewhere": lambda run: altered_plan(run, id="../../x"),
    "deep settings": lambda run: (run.path / "resolved.json").write_text(DEEP),
    "settings that are no recipe": lambda run: (run.path / "resolved.json").write_text("{}"),
    "settings that are not UTF-8": lambda run: (run.path / "resolved.json").write_bytes(b"\xff\xfe"),
    "a deep manifest": lambda run: next(run.path.glob(f"stages/*/{MANIFEST}")).write_text(DEEP),
    "metrics that are a list": lambda run: forged(run, metrics=[1]),
    "a win rate that is a text": lambda run: forged(run, metrics={"win_rate_vs_init": "high"}),
    "a size that is a text": lambda run: forged(run, files={"x": {"size": "1", "sha256": "x"}}),
    "a time that is none": lambda run: forged(run, finished_at="yesterday"),
    "seconds that are a list": lambda run: forged(run, seconds=[]),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good run with garbage, and another one. Tests leave it as it is."""
    folder = tmp_path_factory.mktemp("whole") / "runs"
    leave_temporary(make_run(folder, plan_of(name="good")), plan_of(name="good"))
    make_run(folder, plan_of(name="bad"))
    return folder


@pytest.fixture(params=DAMAGES.values(), ids=list(DAMAGES))
def runs(request: pytest.FixtureRequest, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of these runs, of which the other one is damaged and was touched later."""
    folder = Path(shutil.copytree(whole, tmp_path / "runs", symlinks=True))
    request.param(RunDir(folder / "bad"))
    os.utime(folder / "good" / "events.jsonl", (1, 1))
    monkeypatch.chdir(tmp_path)
    return folder


def test_status_lists_all(runs: Path, spa_here: Any) -> None:
    listed = {run.name: run for run in overviews(runs)}
    assert listed.keys() == {"good", "bad"}
    assert listed["good"].state == "done"
    answer = spa_here("status")
    assert answer.code == 0, answer.err
    assert "good" in answer.out
    assert "bad" in answer.out


def test_gc_clears_the_good_one(runs: Path, spa_here: Any) -> None:
    good = RunDir(runs / "good")
    assert {sweep.run.name for sweep in gc.look(all_runs(runs), models=True)} == {"good", "bad"}
    answer = spa_here("gc", "--yes")
    assert answer.code == 0, answer.err
    assert not [found for found in gc.look([good], models=False) if found.items]


def test_resume_without_a_name_goes_on_with_a_run_that_can_be_read(runs: Path) -> None:
    """A damaged stage is made again, so its run is unfinished; a run whose plan or recipe is damaged is passed over."""
    waiting = make_run(runs, plan_of(name="waiting"), done=3)
    os.utime(waiting.path / "events.jsonl", (2, 2))
    damaged_stage = {stage.id for stage in plan_of().stages}
    with suppress(RecipeError):
        damaged_stage -= RunDir(runs / "bad").done(RunDir(runs / "bad").planned())
        assert RunDir(runs / "bad").recipe() is not None
        assert api.prepare_resume(None, runs).run.name == ("bad" if damaged_stage else "waiting")
        return
    assert api.prepare_resume(None, runs).run.name == "waiting"


# --- what cannot be entered or deleted


def test_a_folder_that_nobody_may_enter_hides_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path, plan_of(name="good"))
    (tmp_path / "closed").mkdir()
    is_file = Path.is_file

    def refuse(path: Path) -> bool:
        if path.parent.name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", refuse)
    assert [run.name for run in all_runs(tmp_path)] == ["good"]


def test_sizes_leave_out_what_cannot_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("seen", "hidden"):
        (tmp_path / name).write_text("x")
    lstat = Path.lstat

    def refuse(path: Path) -> os.stat_result:
        if path.name == "hidden":
            raise PermissionError(13, "Permission denied", str(path))
        return lstat(path)

    monkeypatch.setattr(Path, "lstat", refuse)
    assert [file.path.name for file in usage.files(tmp_path)] == ["seen"]


def test_gc_goes_on_after_what_cannot_be_deleted_and_fails_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spa_here: Any
) -> None:
    left = {}
    for name in ("first", "second"):
        left[name] = leave_temporary(make_run(tmp_path / "runs", plan_of(name=name)), plan_of(name=name))
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path == Path("runs") / left["second"].relative_to(tmp_path / "runs"):
            raise PermissionError(13, "Permission denied", str(path))
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    assert "cannot be deleted" in one_error(spa_here("gc", "--yes"), 3)
    assert left["second"].exists()
    assert not left["first"].exists()
