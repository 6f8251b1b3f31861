"""The runs of a sweep: which there are, in which order they are done, and what happens when one fails or is taken."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from spa_recipes import api, sweep
from spa_recipes.errors import DataError, LockedError, RecipeError, SpaError, StageError, TryAgainError
from spa_recipes.plan import Plan, Stage
from spa_recipes.run.rundir import RunDir
from spa_recipes.sweep import Failure, PreparedSweep, SweepRun, Told, failed, prepare_sweep, run_sweep, tables_of
from tests.kit.recipes import merged, mini, write_recipe

SWEEP: dict[str, Any] = {
    "name": "s",
    "recipe": "mini.yaml",
    "seeds": [1, 2],
    "variants": [{"name": "dpo", "policy": 0}, {"name": "spa"}, {"name": "more", "set": {"sampling.n": 4}}],
    "control": "dpo",
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path / "mini.yaml", mini(data={"prompts_per_iteration": [32]}))
    return tmp_path


def prepared(**changes: Any) -> PreparedSweep:
    path = Path("sweep.yaml")
    path.write_text(yaml.safe_dump(merged(SWEEP, changes), sort_keys=False))
    return prepare_sweep(path)


class World(NamedTuple):
    """Runs that only pretend.

    Attributes:
        done: names of the runs that are done; `begun` those that were begun, in order.
        fails: what happens to a run instead, by name, once.
        broken: ids of stages that count as failed.
        wins: the win rate of a run by name.
        said: what was told.
    """

    done: set[str]
    begun: list[str]
    fails: dict[str, list[SpaError]]
    broken: set[str]
    wins: dict[str, float]
    said: list[str]

    def run(self, of: PreparedSweep) -> list[Failure]:
        return run_sweep(of, Told(lambda run, left: None, self.said.append), consent=lambda plan, run: None)  # type: ignore[arg-type,return-value]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(set(), [], {}, set(), {}, [])

    def left(plan: Plan, run: RunDir) -> list[Stage]:
        return [] if run.name in world.done else [*plan.stages]

    def run(prepared: api.Prepared, *arguments: object, **options: object) -> None:
        name = prepared.run.name
        world.begun.append(name)
        if world.fails.get(name):
            raise world.fails[name].pop(0)
        world.done.add(name)

    def values(plan: Plan, *arguments: object) -> dict[str, float | None] | None:
        return {"win_rate": world.wins.get(plan.recipe.name, 0.5)} if plan.recipe.name in world.done else None

    monkeypatch.setattr(sweep, "unfinished", left)
    monkeypatch.setattr(sweep, "LOOK_AGAIN_SECONDS", 0.0)
    monkeypatch.setattr(api, "run_recipe", run)
    monkeypatch.setattr("spa_recipes.report.sweep.values_of", values)
    monkeypatch.setattr("spa_recipes.run.preflight.check_inputs", lambda plan, run: None)
    monkeypatch.setattr(RunDir, "status", lambda self, stage, plan: "failed" if stage.id in world.broken else "waiting")
    return world


def test_variants_that_look_at_other_policies_of_one_recipe_have_one_run() -> None:
    of = prepared()
    assert [(run.name, run.variants) for run in of.runs] == [
        ("s-dpo-1", ("dpo", "spa")),
        ("s-more-1", ("more",)),
        ("s-dpo-2", ("dpo", "spa")),
        ("s-more-2", ("more",)),
    ]
    assert sweep.default_out(of.sweep) == Path("sweeps/s")


def test_runs_of_one_seed_share_their_stages_by_key_and_those_of_two_seeds_do_not() -> None:
    first, more, second, _ = ({stage.key for stage in run.prepared.plan.stages} for run in prepared().runs)
    assert {stage.id for stage in prepared().runs[0].prepared.plan.stages if stage.key in more} >= {"sft", "seed"}
    assert not first & second


def test_all_runs_are_done_once_and_a_second_call_does_nothing(world: World) -> None:
    of = prepared()
    assert world.run(of) == []
    assert world.begun == ["s-dpo-1", "s-more-1", "s-dpo-2", "s-more-2"]
    assert world.run(of) == []
    assert len(world.begun) == 4


def test_a_run_that_fails_does_not_stop_the_others(world: World) -> None:
    world.fails["s-dpo-1"] = [StageError("a loss is NaN", where="seed")]
    (failure,) = world.run(prepared())
    assert failure.run == "s-dpo-1"
    assert world.begun == ["s-dpo-1", "s-more-1", "s-dpo-2", "s-more-2"]
    assert "s-dpo-1 failed: seed: a loss is NaN" in world.said
    found = tables_of(prepared())
    assert found.notes == ["Of 2 seeds, dpo has 1, spa has 1."]


def test_a_stage_that_failed_is_not_tried_again_by_the_next_run_that_needs_it(world: World) -> None:
    world.fails["s-dpo-1"] = [DataError("a row is bad", where="sft")]
    world.broken.add("sft")
    failures = world.run(prepared())
    assert [failure.run for failure in failures] == ["s-dpo-1", "s-more-1"]
    assert world.begun == ["s-dpo-1", "s-dpo-2", "s-more-2"]
    assert str(failures[1].error) == "needs sft, which failed in s-dpo-1"
    assert failures[1].error.exit_code == DataError.exit_code


def test_with_another_limit_the_stage_is_another_one(world: World) -> None:
    world.fails["s-dpo-1"] = [StageError("too many answers are cut", where="generate-1")]
    world.broken.add("generate-1")
    lenient = {"name": "lenient", "set": {"sampling.max_cut": 0.9}}
    of = prepared(set={"sampling.max_cut": 0.5}, variants=[*SWEEP["variants"][:2], lenient])
    first, other = (run.prepared.plan.stage("generate-1") for run in of.runs[:2])
    assert first.key == other.key
    assert [failure.run for failure in world.run(of)] == ["s-dpo-1"]
    assert "s-lenient-1" in world.begun


def test_a_run_that_another_process_was_faster_to_take_comes_back(world: World) -> None:
    world.fails["s-dpo-1"] = [LockedError("in use")]
    assert world.run(prepared()) == []
    assert world.begun == ["s-dpo-1", "s-more-1", "s-dpo-2", "s-more-2", "s-dpo-1"]


def test_no_run_begins_beside_one_with_a_stage_in_common(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process works on the first run; its seed's other run waits until that is done."""

    def holder(run: RunDir) -> str | None:
        if world.begun and world.begun[-1] == "s-more-2":  # now the other process is done
            world.done.add("s-dpo-1")
        return "host pid 1" if run.name == "s-dpo-1" and run.name not in world.done else None

    monkeypatch.setattr(RunDir, "holder", holder)
    assert world.run(prepared()) == []
    assert world.begun == ["s-dpo-2", "s-more-2", "s-more-1"]


def test_halving_gives_more_seeds_to_the_best_and_to_the_control(world: World) -> None:
    variants = [{"name": name, "set": {"sampling.n": n}} for n, name in enumerate(("a", "b", "c", "d"), start=2)]
    of = prepared(
        seeds=[1, 2, 3],
        variants=variants,
        control="a",
        halving=[{"seeds": 1, "keep": 2}, {"seeds": 2, "keep": 1}],
    )
    world.wins.update({"s-a-1": 0.1, "s-b-1": 0.7, "s-c-1": 0.6, "s-d-1": 0.5, "s-b-2": 0.5, "s-c-2": 0.9})
    assert world.run(of) == []
    assert world.begun == [*(f"s-{name}-1" for name in "abcd"), *(f"s-{name}-2" for name in "abc"), "s-a-3", "s-c-3"]
    assert world.said == ["round 1: b, c go on beside a", "round 2: c go on beside a"]
    found = tables_of(of)
    assert {one.variant.name: [*one.seeds] for one in found.measured} == {
        "a": [1, 2, 3], "b": [1, 2], "c": [1, 2, 3], "d": [1],
    }  # fmt: skip
    assert all(one.corrected is None for one in found.compared)


@pytest.mark.parametrize(
    ("errors", "code"),
    [
        ([TryAgainError("no memory"), TryAgainError("no disk")], 75),
        ([DataError("a bad row")], 3),
        ([DataError("a bad row"), TryAgainError("no memory")], 1),
    ],
    ids=["all of one code", "one", "several codes"],
)
def test_the_exit_code_is_that_of_the_failures_if_they_have_one_in_common(
    errors: Sequence[SpaError], code: int
) -> None:
    error = failed([Failure(f"run-{i}", each) for i, each in enumerate(errors)], 9)
    assert error.exit_code == code
    assert error.what.startswith(f"{len(errors)} of 9 runs failed: run-0")


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "no such figure": ({"metrics": ["winrate"]}, "sweep.yaml:15: metrics.0: there is no figure winrate; did you mean "),
    "no such policy": (
        {"variants": [{"name": "dpo", "policy": 2}]},
        "sweep.yaml:8: variants.0.policy: its runs have no policy 2; choose of last, init, 0, 1",
    ),
    "nothing measured": (
        {"variants": [{"name": "dpo", "set": {"data.heldout": 0}}]},
        "sweep.yaml:7: variants.0: its runs measure nothing",
    ),
    "runs in several folders": (
        {"variants": [{"name": "dpo"}, {"name": "spa", "set": {"storage.runs_dir": "elsewhere"}}]},
        "sweep.yaml: the runs are in several folders (elsewhere, runs); set storage.runs_dir under `set` of the sweep",
    ),
}


@pytest.mark.parametrize(("changes", "words"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_found_before_anything_runs(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError) as raised:
        prepared(**changes)
    assert words in str(raised.value)


def test_a_run_knows_what_is_left_of_it() -> None:
    run = prepared().runs[0]
    assert isinstance(run, SweepRun)
    assert len(run.left()) == len(run.prepared.plan.stages)
    assert run.done_keys() == set()
