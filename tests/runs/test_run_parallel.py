"""Several stages at a time, in processes of their own: they overlap, and a failure or a signal leaves none behind."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from spa_recipes.errors import StageError
from spa_recipes.recipe.schema import LocalExecutor
from spa_recipes.run.executors import Executors
from spa_recipes.run.processes import Worker
from spa_recipes.run.rundir import RunDir
from spa_recipes.run.runner import Outcome, execute
from tests.kit.plans import plan_of
from tests.kit.processes import alive, wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
FORKS = pytest.mark.usefixtures("forks")

STAGE = """
import json, os, sys, time
from pathlib import Path
from spa_recipes.run.lifeline import end_with_starter
from spa_recipes.stages.context import Context, StageSpec
end_with_starter()
spec = StageSpec.read(Path(sys.argv[1]))
context, marks = Context(spec), Path(spec.stage_dir).parents[1]
def meet(other):
    end = time.monotonic() + 60
    while not (marks / f"pid-{other}").exists():
        assert time.monotonic() < end, f"{other} does not run"
        time.sleep(0.01)
(marks / f"pid-{spec.id}.new").write_text(str(os.getpid()))
(marks / f"pid-{spec.id}.new").rename(marks / f"pid-{spec.id}")
exec(json.loads(sys.argv[2]).get(spec.id, ""))
(context.draft / "model").mkdir(parents=True, exist_ok=True)
(context.draft / "model" / "weights").write_text(spec.id)
context.folder.commit({"id": spec.id, "kind": spec.kind, "key": spec.key, "material": spec.material, "rows": 1,
    "tokens": 0, "seconds": 0.0, "metrics": {}, "versions": {}, "finished_at": "2026-01-01T00:00:00+00:00",
    "attempt": spec.attempt})
"""
"""A stage that does what the test says and leaves one file."""

PLAN = plan_of(data={"prompts_per_iteration": [32]})


class RoomForTwo(Executors):
    """An executor with room for two stages; `bodies` says by stage what is special about some of them."""

    room = 2

    def __init__(self, bodies: Mapping[str, str] | None = None) -> None:
        super().__init__(LocalExecutor())
        self._bodies = json.dumps(dict(bodies or {}))

    def start(self, kind: str, spec: Path, log: Path, vllm: Any = None) -> Worker:
        return Worker([sys.executable, "-c", STAGE, str(spec), self._bodies], log)


class Told:
    """A reporter that keeps what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def tell(stage: Any, *arguments: Any, **facts: Any) -> None:
            if name != "progress":
                self.lines.append(f"{name} {stage.id}")

        return tell


def run_plan(folder: Path, bodies: Mapping[str, str] | None = None, **options: Any) -> tuple[Outcome, list[str]]:
    told = Told()
    keywords: dict[str, Any] = {"until": None, "accept": False, "reporter": told, "executors": RoomForTwo(bodies)}
    return execute(PLAN, RunDir(folder / "mini"), "", **{**keywords, **options}), told.lines


def pid_of(folder: Path, stage: str) -> int:
    return int((folder / "mini" / f"pid-{stage}").read_text())


def attempts(folder: Path, stage: str) -> int:
    return len(list((folder / "mini").glob(f"stages/*-{stage}-????????/attempts/*")))


@FORKS
def test_independent_stages_overlap_and_nothing_else_differs(tmp_path: Path) -> None:
    """`evaluate-init` and `seed` each wait until the other one runs, which they would in vain if one came first."""
    outcome, told = run_plan(tmp_path, {"evaluate-init": "meet('seed')", "seed": "meet('evaluate-init')"})
    ids = [stage.id for stage in PLAN.stages]
    assert outcome.complete
    assert list(outcome.manifests) == ids
    assert told == [f"{what} {name}" for name in ids for what in ("started", "finished")]
    assert "refine-1" in str((RunDir(tmp_path / "mini").final / "weights").resolve())


@FORKS
def test_a_failure_stops_the_stage_beside_it_and_a_resume_does_both(tmp_path: Path) -> None:
    bodies = {"evaluate-init": "time.sleep(99)", "seed": "meet('evaluate-init'); sys.exit('nothing to learn from')"}
    run = RunDir(tmp_path / "mini")
    with pytest.raises(StageError, match=r"seed: .*nothing to learn from"):
        run_plan(tmp_path, bodies)
    assert not alive(pid_of(tmp_path, "evaluate-init"))
    assert run.holder() is None
    assert run.status(PLAN.stage("evaluate-init"), PLAN) == "interrupted"
    outcome, told = run_plan(tmp_path)
    assert outcome.complete
    assert [attempts(tmp_path, name) for name in ("sft", "evaluate-init", "seed", "evaluate-0")] == [1, 2, 2, 1]
    assert told[:3] == ["reused data", "reused base", "reused sft"]


RUNNER = """
import sys
from pathlib import Path
from spa_recipes.cli.signals import stop_on_signals
from tests.runs.test_run_parallel import run_plan
stop_on_signals()
run_plan(Path(sys.argv[1]), {"evaluate-init": "time.sleep(99)", "seed": "time.sleep(99)"})
"""


@pytest.mark.parametrize("sign", [pytest.param(signal.SIGINT, marks=pytest.mark.long), signal.SIGTERM, signal.SIGKILL])
def test_a_runner_that_ends_takes_all_its_stages_with_it(tmp_path: Path, sign: signal.Signals) -> None:
    runner = subprocess.Popen([sys.executable, "-c", RUNNER, str(tmp_path)], cwd=Path(__file__).parents[2])
    names = ("evaluate-init", "seed")
    wait_for(lambda: all((tmp_path / "mini" / f"pid-{name}").exists() for name in names))
    pids = [pid_of(tmp_path, name) for name in names]
    assert all(alive(pid) for pid in pids)
    os.kill(runner.pid, sign)
    assert runner.wait(30) == (-sign if sign == signal.SIGKILL else 128 + sign)
    wait_for(lambda: not any(alive(pid) for pid in pids))
    run = RunDir(tmp_path / "mini")
    assert run.holder() is None
    assert {run.status(PLAN.stage(name), PLAN) for name in names} == {"interrupted"}
    outcome, _ = run_plan(tmp_path)
    assert outcome.complete
    assert [attempts(tmp_path, name) for name in ("sft", *names)] == [1, 2, 2]


@FORKS
def test_a_run_that_was_stopped_by_until_says_what_is_left(tmp_path: Path) -> None:
    outcome, _ = run_plan(tmp_path, until="judge-1")
    assert not outcome.complete
    assert list(outcome.manifests) == ["data", "base", "sft", "seed", "generate-1", "score-1-reference", "judge-1"]
    assert [stage.id for stage in outcome.left] == ["evaluate-init", "evaluate-0", "refine-1", "evaluate-1"]
    rest, told = run_plan(tmp_path)
    assert rest.complete
    assert told.count("reused judge-1") == 1
    again, _ = run_plan(tmp_path, until="judge-1")  # of a run in which nothing is left
    assert again.complete
    assert list(again.manifests) == list(outcome.manifests)
