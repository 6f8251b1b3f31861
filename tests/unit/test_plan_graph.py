"""The order of a plan as a graph: what a stage waits for, and where the stop rule adds to it."""

from typing import Any

import pytest

from spa_recipes.plan.graph import Graph, ancestors, descendants
from tests.kit.plans import plan_of

RULE = {"max_judge_decay": 0.02}
BENCHMARK = {"type": "pairwise", "judge": {"type": "gold"}, "max_tokens": 16}
DIAMOND: Graph = {"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c"), "e": ()}


def test_ancestors_and_descendants_go_all_the_way() -> None:
    assert ancestors(DIAMOND, "d") == {"a", "b", "c"}
    assert ancestors(DIAMOND, "e") == set()
    assert descendants(DIAMOND, "a") == {"b", "c", "d"}
    assert descendants(DIAMOND, "d") == set()


def test_a_stage_waits_for_the_stages_that_it_reads() -> None:
    plan = plan_of()
    assert plan.stage("data").waits_for == ()
    assert plan.stage("seed").waits_for == ("sft", "data")
    assert plan.stage("evaluate-1").waits_for == ("refine-1", "data", "evaluate-init")


@pytest.mark.parametrize("changes", [{}, {"evaluation": RULE}, {"evaluation": {"benchmarks": [BENCHMARK], **RULE}}])
def test_every_stage_stands_behind_those_that_it_waits_for(changes: dict[str, Any]) -> None:
    before = set[str]()
    for stage in plan_of(**changes).stages:
        assert before.issuperset(stage.waits_for)
        before.add(stage.id)


def test_until_is_a_stage_and_what_it_needs() -> None:
    plan = plan_of()
    wanted = ["data", "base", "sft", "seed", "generate-1", "score-1-reference", "judge-1"]
    assert [stage.id for stage in plan.until("judge-1")] == wanted
    assert plan.until(None) == plan.stages


def test_an_evaluation_does_not_hold_up_the_next_iteration() -> None:
    plan = plan_of()
    assert all(stage.after == () for stage in plan.stages)
    assert "evaluate-1" not in ancestors(plan.graph, "generate-2")


def test_with_the_stop_rule_an_iteration_waits_for_the_evaluation_that_the_rule_reads() -> None:
    plan = plan_of(evaluation=RULE)
    edges = {stage.id: stage.after for stage in plan.stages if stage.after}
    assert edges == {"generate-1": ("evaluate-0",), "generate-2": ("evaluate-1",)}
    assert "evaluate-1" in [stage.id for stage in plan.until("judge-2")]
    assert [stage.key for stage in plan.stages] == [stage.key for stage in plan_of().stages]


def test_without_seed_labels_the_rule_has_no_evaluation_of_pi_0_to_read() -> None:
    plan = plan_of(evaluation=RULE, data={"seed_labels": 0}, judge={"type": "gold"})
    assert {stage.id: stage.after for stage in plan.stages if stage.after} == {"generate-2": ("evaluate-1",)}


def test_with_the_stop_rule_benchmarks_wait_for_the_last_iteration() -> None:
    """Their answers by pi_init are wanted only beside those of a policy that is made."""
    plan = plan_of(evaluation={"benchmarks": [BENCHMARK], **RULE})
    benchmarks = {stage.id for stage in plan.stages if stage.id.startswith("pairwise")}
    assert benchmarks
    assert benchmarks <= plan.from_on("generate-2")
    free = plan_of(evaluation={"benchmarks": [BENCHMARK]})
    assert not benchmarks <= free.from_on("generate-2")
