"""The control of a recipe: what it adds to the plan, how many steps it takes, and how it is compared."""

import itertools
import random
import statistics
from pathlib import Path

import pytest

from spa_recipes.algo.interval import paired_interval
from spa_recipes.errors import RecipeChangedError
from spa_recipes.estimates import needs, steps_of
from spa_recipes.plan import KINDS, MODEL, StageOutput
from spa_recipes.recipe.schema import PreferenceTraining, RefineTraining
from spa_recipes.report.answers import answers
from spa_recipes.report.warnings import warnings
from spa_recipes.run.changes import refuse_changes
from spa_recipes.run.rundir import RunDir
from spa_recipes.stages.control import steps_of_chain
from spa_recipes.state.stagedir import Manifest
from tests.kit.finished_runs import commit, manifests
from tests.kit.plans import plan_of
from tests.kit.state import FIELDS


def test_it_comes_to_the_stages_of_the_recipe_and_moves_no_key() -> None:
    before, plan = plan_of(), plan_of(control=True)
    assert plan.stages[: len(before.stages)] == before.stages
    assert [stage.id for stage in plan.stages[len(before.stages) :]] == ["control", "evaluate-control"]
    control, seed = plan.stage("control"), plan.stage("seed")
    assert {name: value for name, value in control.inputs.items() if not name.startswith("judgments")} == seed.inputs
    assert control.inputs["policy"] == plan.initial_policy
    compared = plan.stage("evaluate-control").inputs
    last = plan.stage("evaluate-2").inputs
    assert compared["policy"] == StageOutput("control", MODEL)
    assert compared["spa_samples"] == StageOutput("evaluate-2", "samples.jsonl")
    assert {name: compared[name] for name in ("heldout", "init_samples")} == {
        name: last[name] for name in ("heldout", "init_samples")
    }


def test_the_final_model_stays_that_of_spa() -> None:
    plan = plan_of(control=True)
    made = plan.newest_model([stage.id for stage in plan.stages])
    assert made is not None
    assert made.id == "refine-2"
    assert not KINDS["control"].policy


def test_its_estimate_is_the_sum_of_the_chain() -> None:
    plan = plan_of(control=True)
    chain = [steps_of(plan.stage(name)) for name in ("seed", "refine-1", "refine-2")]
    steps = steps_of(plan.stage("control"))
    assert steps == sum(each or 0 for each in chain)
    batch = plan.stage("control").settings["training"].global_batch_size
    assert needs(plan.stage("control"), plan).tokens == batch * steps * 2 * 128


@pytest.mark.parametrize(
    ("seed", "refine", "judged", "steps"),
    [
        ({}, {}, [64, 33], 2 + 2 + 2),
        ({"num_train_epochs": 3, "global_batch_size": 8}, {"num_train_epochs": 2}, [64], 3 * 5 + 2 * 2),
        ({}, {"seed_replay": 0.5}, [33], 2 + 3),
    ],
)
def test_the_steps_of_a_chain(seed: dict[str, int], refine: dict[str, float], judged: list[int], steps: int) -> None:
    trainings = PreferenceTraining.model_validate(seed), RefineTraining.model_validate(refine)
    assert steps_of_chain(*trainings, labels=40, judged=judged, added=[0] * len(judged)) == steps


def test_a_control_may_come_to_a_run_that_is_finished(tmp_path: Path) -> None:
    run, before = RunDir(tmp_path / "mini"), plan_of()
    run.write_recipe("", before.recipe, before)
    commit(run, before, "data")
    refuse_changes(plan_of(control=True), run)
    with pytest.raises(RecipeChangedError, match="stage control is new"):
        refuse_changes(plan_of(control=True, seed_training={"beta": 0.5}), run)


def test_the_interval_of_paired_differences_holds_the_truth_in_95_of_100_samples() -> None:
    """Also where nearly all pairs are alike, and with few pairs."""
    rng = random.Random(7)
    for n, shares in itertools.product((10, 60), ((0.3, 0.3), (0.25, 0.05), (0.02, 0.0))):
        truth, inside = shares[0] - shares[1], 0
        for _ in range(1500):
            drawn = [rng.random() for _ in range(n)]
            values = [1.0 if x < shares[0] else -1.0 if x > 1 - shares[1] else 0.0 for x in drawn]
            low, high = paired_interval(values)
            inside += low <= truth <= high
        assert inside >= 0.92 * 1500, (n, shares)


def test_the_interval_has_a_width_and_shrinks_with_the_pairs() -> None:
    low, high = paired_interval([0.0] * 10)
    assert low == -high < -0.1
    values = [1.0, 0.0, -1.0, 0.5] * 500
    low, high = paired_interval(values)
    exact = 1.96 * statistics.stdev(values) / len(values) ** 0.5
    assert high - low == pytest.approx(2 * exact, rel=0.01)
    with pytest.raises(ValueError, match="no differences"):
        paired_interval([])


VERDICTS: list[tuple[float, float, float, str]] = [
    (0.12, 0.05, 0.19, "12.0 points higher, prompt by prompt (95 %: 5.0 to 19.0)"),
    (0.12, 0.05, 0.19, ": it helped"),
    (0.02, -0.05, 0.09, ": it is not shown that the iterations helped"),
    (-0.12, -0.19, -0.05, ": it did harm: the labels alone do better"),
]


@pytest.mark.parametrize(("gain", "low", "high", "words"), VERDICTS)
def test_the_answer_in_words(gain: float, low: float, high: float, words: str) -> None:
    figures = {"spa_win_rate": 0.61, "spa_gain": gain, "spa_gain_low": low, "spa_gain_high": high, "prompts": 250}
    control = Manifest(**{**FIELDS, "id": "evaluate-control", "kind": "evaluate", "metrics": figures}, files={})
    (line,) = answers({"evaluate-control": control})
    assert words in line
    assert "61.0% (54.8% to 66.8%)" in line
    assert answers({}) == []


def test_what_is_said_of_the_policies_is_not_said_of_the_control(tmp_path: Path) -> None:
    plan = plan_of(control=True)
    run = RunDir(tmp_path / "mini")
    for stage in plan.stages:
        commit(run, plan, stage.id)
    found = manifests(run, plan)
    found["evaluate-control"].metrics.update(win_rate_vs_init=0.1, mean_tokens=1000.0)
    told = " ".join(warnings(plan.recipe, found))  # type: ignore[arg-type]
    assert "control" not in told
    assert "grew" not in told
