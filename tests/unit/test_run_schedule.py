"""The schedule of a run: what begins when, and what is told in which order. Jobs here are objects, not processes."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spa_recipes.errors import StageError, TryAgainError
from spa_recipes.plan import Stage
from spa_recipes.run import disk, schedule
from spa_recipes.run.reporter import PlanOrder
from spa_recipes.run.schedule import do_stages
from spa_recipes.state.stagedir import Manifest, StageDir
from tests.kit.plans import plan_of
from tests.kit.state import FIELDS


def manifest_of(stage_id: str, **metrics: float) -> Manifest:
    return replace(Manifest(files={}, **FIELDS), id=stage_id, metrics=metrics)


class World:
    """Stages that take as many polls as `polls` says (1 if it does not), and what happened to them.

    Attributes:
        happened: `+ID` where a stage began, `-ID` where it ended, `xID` where it was stopped.
        at_once: the most stages that ran at a time.
    """

    def __init__(self, polls: dict[str, int] | None = None, **metrics: dict[str, float]) -> None:
        self.polls, self.metrics = polls or {}, metrics
        self.ends: dict[str, Callable[[], None]] = {}
        self.stops: dict[str, Callable[[], None]] = {}
        self.happened: list[str] = []
        self.at_once = 0

    def begin(self, stage: Stage, running: Sequence[Stage]) -> "FakeJob":
        self.at_once = max(self.at_once, len(running) + 1)
        self.happened.append(f"+{stage.id}")
        return FakeJob(self, stage.id)

    @property
    def begun(self) -> list[str]:
        return [name[1:] for name in self.happened if name.startswith("+")]


class FakeJob:
    def __init__(self, world: World, stage_id: str) -> None:
        self._world, self._id, self._left = world, stage_id, world.polls.get(stage_id, 1)

    def poll(self) -> Manifest | None:
        self._left -= 1
        if self._left > 0:
            return None
        self._world.ends.get(self._id, lambda: None)()
        self._world.happened.append(f"-{self._id}")
        return manifest_of(self._id, **self._world.metrics.get(self._id.replace("-", "_"), {}))

    def stop(self) -> None:
        self._world.happened.append(f"x{self._id}")
        self._world.stops.get(self._id, lambda: None)()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "POLL_SECONDS", 0)


def fail(words: str) -> Callable[[], None]:
    def raises() -> None:
        raise StageError(words)

    return raises


def interrupt() -> None:
    raise SystemExit(130)


def test_with_room_for_one_the_stages_are_done_in_the_order_of_the_plan() -> None:
    plan, world = plan_of(), World({"evaluate-init": 5, "sft": 3})
    done = do_stages(plan, plan.stages, world.begin, room=1)
    ids = [stage.id for stage in plan.stages]
    assert world.happened == [f"{sign}{name}" for name in ids for sign in "+-"]
    assert list(done) == ids


def test_with_room_for_two_what_is_ready_runs_beside_a_slow_stage() -> None:
    plan, world = plan_of(), World({"evaluate-1": 100})
    done = do_stages(plan, plan.stages, world.begin, room=2)
    assert world.at_once == 2
    assert world.happened.index("-refine-2") < world.happened.index("-evaluate-1")
    assert list(done) == [stage.id for stage in plan.stages]  # whichever ended first
    for stage in plan.stages:
        begun = world.happened.index(f"+{stage.id}")
        assert all(world.happened.index(f"-{name}") < begun for name in stage.waits_for)


def test_the_room_is_never_exceeded() -> None:
    plan, world = plan_of(), World({f"evaluate-{i}": 20 for i in ("init", 0, 1, 2)})
    do_stages(plan, plan.stages, world.begin, room=3)
    assert world.at_once == 3


def test_a_failure_stops_the_other_stages() -> None:
    plan, world = plan_of(), World({"evaluate-init": 100})
    world.ends["seed"] = fail("no seed")
    with pytest.raises(StageError, match="no seed"):
        do_stages(plan, plan.stages, world.begin, room=2)
    assert world.happened[-1] == "xevaluate-init"
    assert "xseed" not in world.happened  # it has ended by itself
    assert "generate-1" not in world.begun


def test_of_two_failures_the_first_in_the_plan_is_told() -> None:
    plan, world = plan_of(), World()
    world.ends |= {"evaluate-init": fail("first"), "seed": fail("second")}
    with pytest.raises(StageError, match="first"):
        do_stages(plan, plan.stages, world.begin, room=2)


def test_a_stage_that_ends_well_beside_a_failure_counts() -> None:
    plan, world = plan_of(), World()
    world.ends["evaluate-init"] = fail("no evaluation")
    with pytest.raises(StageError):
        do_stages(plan, plan.stages, world.begin, room=2)
    assert world.happened[-1] == "-seed"


def test_an_interruption_stops_all_stages_even_if_one_cannot_be_stopped() -> None:
    plan, world = plan_of(), World({"evaluate-init": 100, "seed": 100, "evaluate-0": 100})
    world.ends["seed"] = interrupt
    world.polls["seed"] = 3
    world.stops["seed"] = fail("cannot be stopped")
    with pytest.raises((SystemExit, StageError)):
        do_stages(plan, plan.stages, world.begin, room=2)
    assert {"xevaluate-init", "xseed"} <= set(world.happened)


def test_a_stage_without_room_on_the_disk_waits_until_another_has_ended() -> None:
    plan, world, asked = plan_of(), World({"evaluate-init": 4}), []

    def begin(stage: Stage, running: Sequence[Stage]) -> FakeJob | None:
        if stage.id == "seed":
            asked.append([other.id for other in running])
            if running:
                return None
        return world.begin(stage, running)

    do_stages(plan, plan.stages, begin, room=2)
    assert asked == [["evaluate-init"], []]
    assert world.happened.index("-evaluate-init") < world.happened.index("+seed")


@pytest.mark.parametrize("room", [1, 2, 9])
def test_the_stop_rule_leaves_out_the_same_stages_whatever_the_room(room: int) -> None:
    benchmark = {"type": "pairwise", "judge": {"type": "gold"}, "max_tokens": 16}
    plan = plan_of(evaluation={"max_judge_decay": 0.02, "benchmarks": [benchmark]})
    world = World(
        {"evaluate-1": 9}, **{f"evaluate_{i}": {"heldout_accuracy": v} for i, v in enumerate((0.8, 0.7, 0.9))}
    )
    done = do_stages(plan, plan.stages, world.begin, room=room)
    ids = [stage.id for stage in plan.stages]
    assert list(done) == ids[: ids.index("generate-2")]
    assert set(world.begun) == set(done)


def test_a_stage_leaves_room_on_the_disk_for_the_running_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, folder = plan_of(), StageDir(tmp_path)
    needed = disk.still_to_write(plan.stage("seed"), plan, folder)
    assert needed
    monkeypatch.setattr(disk, "free_bytes", lambda path: needed + 10)
    assert disk.room_needed(plan.stage("seed"), plan, folder, promised=10) == needed
    with pytest.raises(TryAgainError, match="for the stages that run"):
        disk.room_needed(plan.stage("seed"), plan, folder, promised=11)


# --- messages ---


class Told:
    """A reporter that keeps what it was told."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda stage, *arguments, **facts: self.lines.append((name, stage.id))


def test_messages_come_in_the_order_of_the_plan_whichever_stage_is_faster() -> None:
    plan = plan_of()
    first, second, third = (plan.stage(name) for name in ("data", "base", "sft"))
    told = Told()
    reporter = PlanOrder(told, plan.stages, unheard=lambda error: None)
    reporter.started(first, 1)
    reporter.started(second, 1)
    reporter.progress(second, 1, 2, "rows", "")  # at once: bars may move in any order
    reporter.noticed(second, "a damaged shard")
    reporter.finished(second, manifest_of("base"))
    assert told.lines == [("started", "data"), ("progress", "base")]
    reporter.finished(first, manifest_of("data"))
    assert told.lines[2:] == [("finished", "data"), ("started", "base"), ("noticed", "base"), ("finished", "base")]
    reporter.reused(third, manifest_of("sft"), adopted=False)
    assert told.lines[-1] == ("reused", "sft")


def test_what_waits_is_told_when_the_run_ends() -> None:
    plan, told = plan_of(), Told()
    reporter = PlanOrder(told, plan.stages, unheard=lambda error: None)
    reporter.started(plan.stage("data"), 1)
    reporter.started(plan.stage("base"), 1)
    reporter.finished(plan.stage("base"), manifest_of("base"))
    reporter.flush()
    assert told.lines == [("started", "data"), ("started", "base"), ("finished", "base")]


def test_a_reporter_that_reaches_nobody_is_told_nothing_more_and_that_is_noted_once() -> None:
    plan, told, notes = plan_of(), Told(), list[OSError]()

    class Unheard(Told):
        def __getattr__(self, name: str) -> Any:
            def tell(stage: Any, *arguments: Any, **facts: Any) -> None:
                told.lines.append((name, stage.id))
                raise BrokenPipeError(32, "Broken pipe")

            return tell

    reporter = PlanOrder(Unheard(), plan.stages, unheard=notes.append)
    reporter.started(plan.stage("data"), 1)
    reporter.progress(plan.stage("data"), 1, 2, "rows", "")
    reporter.finished(plan.stage("data"), manifest_of("data"))
    assert told.lines == [("started", "data")]
    assert [str(note) for note in notes] == ["[Errno 32] Broken pipe"]
