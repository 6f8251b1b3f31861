"""The runner's parts: commands of executors, processes that end, states read from disk, errors of stages."""

import json
import os
import sys
import time
from pathlib import Path

import pytest

from spa_recipes import api
from spa_recipes.errors import DataError, RecipeChangedError, RecipeError, SpaError, StageError, TryAgainError
from spa_recipes.plan import External, StageOutput
from spa_recipes.recipe.schema import AccelerateExecutor, LocalExecutor
from spa_recipes.run import executors
from spa_recipes.run.changes import plan_changes, refuse_changes
from spa_recipes.run.failure import stage_failure
from spa_recipes.run.progressfile import ProgressFile
from spa_recipes.run.rundir import RunDir, all_runs, find_reusable, plan_json
from spa_recipes.state import atomic, marker
from tests.kit.finished_runs import commit
from tests.kit.plans import plan_of, plan_of_recipe
from tests.kit.recipes import mini

# --- executors ---


def test_commands_of_the_executors(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = Path("spec.json")
    local = executors._command(LocalExecutor(), "sft", spec)
    assert local == [sys.executable, "-m", "spa_recipes.run.worker", "spec.json"]
    four = AccelerateExecutor(type="accelerate", num_processes=4)
    assert executors._command(four, "judge", spec) == local  # loads no model
    monkeypatch.setattr(executors, "visible_gpus", lambda: ["0", "1", "2", "3"])
    command = executors._command(four, "refine", spec)
    # What the user's own configuration of accelerate says does not count.
    plain = "--num_machines=1 --mixed_precision=no --dynamo_backend=no"
    launch = f"spa_recipes.run.launch --num_processes=4 {plain} --multi_gpu --module spa_recipes.run.worker spec.json"
    assert command[2:] == launch.split()
    with_config = AccelerateExecutor(type="accelerate", num_processes=8, config_file="fsdp.yaml")
    assert "--config_file=fsdp.yaml" in executors._command(with_config, "refine", spec)
    assert "--multi_gpu" not in executors._command(with_config, "refine", spec)


# --- what a run's folder says ---


def test_status_is_read_from_disk(tmp_path: Path) -> None:
    plan, run = plan_of(), RunDir(tmp_path / "mini")
    stage = plan.stage("seed")
    marker.claim(run.path, run.kind)
    assert run.status(stage, plan) == "waiting"
    attempt = run.stage_dir(stage, plan).new_attempt()
    assert run.status(stage, plan) == "interrupted"
    with run.locked():
        assert run.status(stage, plan) == "running"
        assert f"pid {os.getpid()}" in str(run.holder())
    assert run.holder() is None
    atomic.write_text(attempt / "error.json", "{}")
    assert run.status(stage, plan) == "failed"
    commit(run, plan, "seed")
    assert run.status(stage, plan) == "done"


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="--run-dir"), RunDir(tmp_path / "file" / "run").locked():
        pass


def test_a_stage_is_found_when_a_changed_plan_renumbers_it(tmp_path: Path) -> None:
    run, before = RunDir(tmp_path / "mini"), plan_of()
    commit(run, before, "seed")
    after = plan_of(evaluation={"enabled": False})
    numbers = [[stage.id for stage in plan.stages].index("seed") for plan in (before, after)]
    assert numbers[0] != numbers[1]
    assert run.is_done(after.stage("seed"), after)


def test_a_stored_plan_says_what_each_stage_reads(in_tmp: None) -> None:
    """Of other stages only: a user's folder may be called as a stage is."""
    Path("data").mkdir()
    Path("data/pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    recipe = mini()
    recipe["data"]["pairs"] = {"type": "dataset", "source": "data/pairs.jsonl"}
    recipe["evaluation"] = {"enabled": False}
    plan = plan_of_recipe(recipe)
    atomic.write_json(Path("plan.json"), plan_json(plan))
    for stage, stored in zip(plan.stages, RunDir(Path()).planned(), strict=True):
        assert stored.reads == {value.stage for value in stage.inputs.values() if isinstance(value, StageOutput)}


def test_inputs_are_paths_or_hub_ids(tmp_path: Path) -> None:
    plan, run = plan_of(), RunDir(tmp_path / "mini")
    path = run.input_path(StageOutput("sft", "model"), plan)
    assert Path(path) == run.stage_dir(plan.stage("sft"), plan).output / "model"
    assert run.input_path(External("org/name", "hub:org/name@main"), plan) == "org/name"


def test_only_whole_stages_of_other_runs_are_reused(tmp_path: Path) -> None:
    plan, first, second = plan_of(), RunDir(tmp_path / "first"), RunDir(tmp_path / "second")
    stage = plan.stage("seed")
    commit(first, plan, "seed")
    assert find_reusable(tmp_path, stage, besides=first, whose="all") is None
    found = find_reusable(tmp_path, stage, besides=second, whose="all")
    assert found is not None
    assert found[0] == "first"
    (first.stage_dir(stage, plan).output / "model" / "config.json").write_text("{}")
    assert find_reusable(tmp_path, stage, besides=second, whose="all") is None


def test_the_newest_run_comes_first(tmp_path: Path) -> None:
    for age, name in enumerate(("new", "old")):
        run = RunDir(tmp_path / name)
        plan = plan_of(name=name)
        run.write_recipe("text", plan.recipe, plan)
        run.log_event("x")
        stamp = time.time() - 100 * age
        os.utime(run.path / "events.jsonl", (stamp, stamp))
    assert [run.name for run in all_runs(tmp_path)] == ["new", "old"]
    assert all_runs(tmp_path)[0].recipe() == plan_of(name="new").recipe


def test_changes_name_the_stage_where_they_arise(tmp_path: Path) -> None:
    run, before = RunDir(tmp_path / "mini"), plan_of()
    run.write_recipe("", before.recipe, before)
    assert plan_changes(before, run) == []
    assert plan_changes(plan_of(refine={"logging_steps": 1}), run) == []
    changes = plan_changes(plan_of(seed_training={"beta": 0.5}), run)
    assert [line for line in changes if "0.1 -> 0.5" in line and line.startswith("seed:")]
    assert not [line for line in changes if line.startswith(("generate-1", "refine-1"))]
    elsewhere = {"executor": {"type": "local"}, "cpu_threads": 2, "score_tokens_per_batch": 99}
    assert plan_changes(plan_of(compute=elsewhere), run) == []
    fewer = plan_changes(plan_of(data={"prompts_per_iteration": [32]}), run)
    assert "stage refine-2 is gone" in fewer
    (run.path / "plan.json").write_text("[{")
    refuse_changes(before, run)
    commit(run, before, "data")
    with pytest.raises(RecipeChangedError, match=r"plan\.json.*--accept"):
        refuse_changes(before, run)


def test_a_recipe_may_change_until_a_stage_is_finished(tmp_path: Path) -> None:
    run, before = RunDir(tmp_path / "mini"), plan_of()
    run.write_recipe("", before.recipe, before)
    run.stage_dir(before.stage("data"), before).new_attempt()
    after = plan_of(seed_training={"beta": 0.5})
    refuse_changes(after, run)
    commit(run, before, "data")
    with pytest.raises(RecipeChangedError, match=r"seed: .*0\.1 -> 0\.5"):
        refuse_changes(after, run)


def test_a_run_goes_on_with_a_setting_changed(tmp_path: Path) -> None:
    run, before = RunDir(tmp_path / "mini"), plan_of()
    run.write_recipe("text", before.recipe, before)
    change = ["refine.beta=0.2", "data.prompts_per_iteration=[32]", "noise.lambdas=[0.5]"]
    prepared = api.prepare_resume("mini", tmp_path, overrides=change)
    assert (
        prepared.plan.recipe
        == plan_of(refine={"beta": 0.2}, data={"prompts_per_iteration": [32]}, noise={"lambdas": [0.5]}).recipe
    )
    assert prepared.text is None
    assert run.recipe() == before.recipe  # nothing is written before it goes on
    for wrong, told in (
        ("refine.bta=0.2", r"^--set refine\.bta: unknown key; did you mean beta, which is set already\?"),
        ("refine.nothing=0.2", r"^--set refine\.nothing: unknown key; allowed here: learning_rate,"),
        ("noise.lambdas=[0.5]", r"^--set noise\.lambdas: "),
    ):
        with pytest.raises(RecipeError, match=told):
            api.prepare_resume("mini", tmp_path, overrides=[wrong])


# --- what a failed stage leaves ---


def test_progress_is_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    progress = ProgressFile(path)
    assert progress.new_lines() == []
    path.write_text('{"done": 1}\n{"done": 2}\n{"do')
    assert [line["done"] for line in progress.new_lines()] == [1, 2]
    with path.open("a") as handle:
        handle.write('ne": 3}\n')
    assert [line["done"] for line in progress.new_lines()] == [3]


def test_a_stages_own_error_keeps_its_exit_code(tmp_path: Path) -> None:
    stage = plan_of().stage("seed")
    record = {"exit_code": 75, "what": "out of memory", "where": "", "fix": "smaller batches"}
    (tmp_path / "error.json").write_text(json.dumps(record))
    error = stage_failure(stage, 75, tmp_path)
    assert isinstance(error, TryAgainError)
    assert str(error) == "seed: out of memory; smaller batches"


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (-9, TryAgainError, "kernel does when memory runs out"),
        (-9, TryAgainError, "seed_training.per_device_train_batch_size"),
        (-11, StageError, "killed by signal 11 (SIGSEGV)"),
        (1, StageError, "exit code 1"),
    ],
)
def test_a_crash_shows_the_end_of_its_log(tmp_path: Path, code: int, kind: type[SpaError], words: str) -> None:
    (tmp_path / "worker.log").write_text("".join(f"line {i}\n" for i in range(50)) + "Segmentation fault\n")
    error = stage_failure(plan_of().stage("seed"), code, tmp_path)
    assert isinstance(error, kind)
    assert words in str(error)
    assert "Segmentation fault" in str(error)
    assert "line 10 " not in str(error)
    assert str(tmp_path / "worker.log") in str(error)


def test_a_run_with_keys_of_another_scheme_is_named_as_that(tmp_path: Path) -> None:
    plan = plan_of()
    run = RunDir(tmp_path / "mini")
    run.write_recipe("", plan.recipe, plan)
    stored = json.loads((run.path / "plan.json").read_text())
    commit(run, plan, "data")
    for entry in stored:
        del entry["material"]["scheme"]
    (run.path / "plan.json").write_text(json.dumps(stored))
    with pytest.raises(RecipeChangedError, match=r"by other keys.*--accept") as caught:
        refuse_changes(plan, run)
    assert "default" not in str(caught.value)  # no list of fields that did not change
