"""Labels that come in the middle of a run: which stages read them, which keys stay, and what `spa resume` adds."""

from pathlib import Path
from typing import Any

import pytest

from spa_recipes.api import Prepared
from spa_recipes.cli.resume import keeps_what_is_done
from spa_recipes.data.rows import PairRow, prompt_id, read_rows
from spa_recipes.errors import DataError, RecipeError
from spa_recipes.plan import Plan
from spa_recipes.recipe.load import load_recipe
from spa_recipes.recipe.schema import DatasetSource
from spa_recipes.run.labels import done_again, new_labels
from spa_recipes.run.rundir import RunDir
from spa_recipes.stages.added import run as run_stage
from spa_recipes.state import marker
from tests.kit.benchmarks import write_lines
from tests.kit.finished_runs import commit, make_run
from tests.kit.labelling import session, source_of
from tests.kit.plans import plan_of
from tests.kit.recipes import mini, write_recipe
from tests.kit.stages import context_of


@pytest.fixture
def labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "l.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "b"}])
    return "l.jsonl"


def keys(plan: Plan) -> dict[str, str]:
    return {stage.id: stage.key for stage in plan.stages}


def added(labels: str, **changes: Any) -> dict[str, Any]:
    return {"data": {"added": [{"source": labels, "after": 1, **changes}]}}


def test_labels_after_an_iteration_change_only_what_comes_later(labels: str) -> None:
    before, now = keys(plan_of()), keys(plan_of(**added(labels)))
    changed = {name for name in before if before[name] != now[name]}
    assert now.keys() - before.keys() == {"labels-1"}
    assert changed == {"refine-2", "evaluate-2"}  # nothing that was shared out, and not refine-1


def test_they_are_replayed_with_and_without_seed_replay(labels: str) -> None:
    plan = plan_of(**added(labels))
    assert str(plan.stage("refine-2").inputs["added_pairs"]) == "labels-1/pairs.jsonl"
    assert "added_pairs" not in plan.stage("refine-1").inputs
    assert {*plan.stage("labels-1").inputs} == {"pairs", "taken-0"}


def test_held_out_labels_are_measured_on_and_nothing_is_trained_again(labels: str) -> None:
    before, now = keys(plan_of()), keys(plan_of(**added(labels, join="heldout")))
    changed = {name for name in before if before[name] != now[name]}
    assert changed == {name for name in before if name.startswith("evaluate-")}


def test_several_files_go_on_from_one_another_whatever_their_order(labels: str) -> None:
    late, early = {"source": labels, "after": 1}, {"source": labels, "after": 0}
    plan = plan_of(data={"added": [late, early]})
    assert str(plan.stage("labels-1").inputs["earlier"]) == "labels-2/pairs.jsonl"
    assert str(plan.stage("refine-1").inputs["added_pairs"]) == "labels-2/pairs.jsonl"
    assert str(plan.stage("refine-2").inputs["added_pairs"]) == "labels-1/pairs.jsonl"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": {"added": [{"source": "l.jsonl", "after": 2}]}}, "no iteration comes after iteration 2"),
        ({"data": {"added": [{"source": "l.jsonl", "after": 1}]}, "refine": {"loss": "distill"}}, "have none"),
        (
            {"data": {"added": [{"source": "l.jsonl", "after": 1, "join": "heldout"}], "heldout": 0}},
            "nothing is evaluated that could read them",
        ),
    ],
)
def test_labels_that_nothing_would_read_are_refused(labels: str, changes: Any, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        load_recipe(write_recipe(Path("r.yaml"), mini(**changes)))


def test_resume_adds_the_labels_in_the_folder_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = make_run(Path("runs/mini"), plan_of())
    assert new_labels(run) == (None, [])
    for iteration in (1, 2):
        with session(run.path / f"labels-{iteration}.jsonl", source_of(3)) as one:
            one.choose(0, "left")
            one.choose(1, "tie")
    found = new_labels(run)
    assert found.override == 'data.added=[{"source": "runs/mini/labels-1.jsonl", "after": 1}]'
    assert found.told == [
        "added to the seed labels from iteration 2 on (data.added): 1 label of runs/mini/labels-1.jsonl",
        "not added, as no iteration comes after 2 (data.prompts_per_iteration): 1 label of runs/mini/labels-2.jsonl",
    ]
    plan = plan_of(data={"added": [{"source": "runs/mini/labels-1.jsonl", "after": 1}]})
    assert done_again(plan, run) == ["refine-2", "evaluate-2"]
    run.write_recipe(None, plan.recipe, plan)
    assert new_labels(run).override is None


def rows_of(*prompts: str) -> list[dict[str, Any]]:
    messages = [[{"role": "user", "content": text}] for text in prompts]
    answers = {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    return [{"prompt_id": prompt_id(m), "prompt": m, "row": i, **answers} for i, m in enumerate(messages)]  # type: ignore[arg-type]


def stage(folder: Path, new: list[str], taken: list[str], earlier: list[str]) -> tuple[list[str], dict[str, Any]]:
    """What the stage writes for labels of these prompts, and its figures."""
    write_lines(folder / "pairs.jsonl", [{"prompt": text, "chosen": "a", "rejected": "b"} for text in new])
    write_lines(folder / "taken.jsonl", rows_of(*taken))
    write_lines(folder / "earlier.jsonl", rows_of(*earlier))
    inputs = {"pairs": folder / "pairs.jsonl", "taken-0": folder / "taken.jsonl", "earlier": folder / "earlier.jsonl"}
    source = DatasetSource(source="x").model_dump(mode="json")
    context = context_of(folder / "stage", "added", settings={"source": source}, inputs=inputs)
    result = run_stage(context)
    written = read_rows(context.draft / "pairs.jsonl", PairRow)
    return [row["prompt"][0]["content"] for row in written], result.metrics


def test_a_prompt_of_the_other_part_is_left_out_and_what_came_before_is_handed_on(tmp_path: Path) -> None:
    written, metrics = stage(tmp_path, ["one", "two", "three"], taken=["two"], earlier=["before"])
    assert written == ["before", "one", "three"]
    assert (metrics["added"], metrics["dropped_rows"]) == (2, 1)


def test_labels_that_all_belong_to_the_other_part_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the prompts of all 2 labels are in a part already"):
        stage(tmp_path, ["one", "two"], taken=["two", "one"], earlier=[])


def test_stages_that_are_not_done_yet_take_labels_without_a_question(
    tmp_path: Path, labels: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before, plan = plan_of(), plan_of(**added(labels))
    run = RunDir(tmp_path / "runs/mini")
    marker.claim(run.path, run.kind)
    for name in before.graph:
        if name not in ("refine-2", "evaluate-2"):
            commit(run, before, name)
    run.write_recipe("name: mini\n", before.recipe, before)
    assert done_again(plan, run) == []
    assert keeps_what_is_done(Prepared(plan, run, None))
    commit(run, before, "refine-2")
    assert not keeps_what_is_done(Prepared(plan, run, None))
    assert "done again with the labels: refine-2" in capsys.readouterr().err
