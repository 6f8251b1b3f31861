"""Freeing what runs no longer need: exactly that, never more, and with honest numbers."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from spa_recipes.errors import DataError
from spa_recipes.plan import Plan
from spa_recipes.run import final, gc
from spa_recipes.run.overview import disk_usage, overviews
from spa_recipes.run.rundir import RunDir, find_reusable
from spa_recipes.state import atomic
from spa_recipes.state.stagedir import MANIFEST, adopt
from spa_recipes.state.usage import size
from tests.kit.garbage import (
    LEFT,
    WEIGHTS,
    commit,
    folder_of,
    leave_checkpoints_of_a_finished_stage,
    leave_draft,
    leave_shards_of_a_finished_stage,
    make_run,
    replaced_stage,
    write,
)
from tests.kit.plans import plan_of


def content(folder: Path) -> dict[str, bytes]:
    """Everything in a folder but the note of who holds it."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (".lock", ".holder")
    }


# --- what is garbage ---


def test_a_run_as_it_should_be_has_no_garbage(tmp_path: Path) -> None:
    plan = plan_of()
    run = make_run(tmp_path, plan)
    before = content(run.path)
    assert gc.sweep([run], models=False) == [gc.Sweep(run, [], [])]
    assert content(run.path) == before


@pytest.mark.parametrize("leave", LEFT, ids=lambda leave: leave.__name__)
def test_what_is_left_behind_is_found_and_freed(tmp_path: Path, leave: Callable[[RunDir, Plan], Path]) -> None:
    plan = plan_of()
    run = make_run(tmp_path, plan, done=10)  # up to judge-1
    garbage = leave(run, plan)
    everything = content(run.path)
    expected = {name: data for name, data in everything.items() if not (run.path / name).is_relative_to(garbage)}
    (looked,) = gc.look([run], models=True)
    assert [(item.path, sizes) for item, sizes in looked.items] == [(garbage, gc.Size(70, 0))]
    assert content(run.path) == everything  # to look deletes nothing
    (swept,) = gc.sweep([run], models=True)
    assert swept == looked
    assert not garbage.exists()
    assert content(run.path) == expected
    assert gc.look([run], models=True)[0].items == []


def test_progress_of_unfinished_stages_and_logs_stay(tmp_path: Path) -> None:
    plan = plan_of()
    run = make_run(tmp_path, plan, done=9)
    refine = folder_of(run, plan, "refine-1")
    attempt = refine.new_attempt()
    write(attempt / "worker.log", 10)
    write(refine.work / "checkpoints" / "checkpoint-4" / "spa_checkpoint.json", 10)
    write(refine.work / "shards" / "reference" / "0-8.parquet", 10)
    write(run.path / "stages" / "notes" / "mine.txt", 10)
    write(run.path / "stages" / "03-mine" / "mine.txt", 10)
    before = content(run.path)
    gc.sweep([run], models=True)
    assert content(run.path) == before


def test_progress_that_the_recipe_keeps_stays(tmp_path: Path) -> None:
    plan = plan_of(storage={"keep_checkpoints": True})
    run = make_run(tmp_path, plan)
    checkpoints = leave_checkpoints_of_a_finished_stage(run, plan)
    shards = leave_shards_of_a_finished_stage(run, plan)
    gc.sweep([run], models=False)
    assert checkpoints.is_dir()
    assert not shards.exists()


def test_a_damaged_stage_of_the_plan_is_not_touched(tmp_path: Path) -> None:
    """Setting it aside is up to the next `spa run`."""
    plan = plan_of()
    run = make_run(tmp_path, plan)
    (folder_of(run, plan, "judge-1").path / MANIFEST).write_text("{")
    (folder_of(run, plan, "seed").output / "model" / "log.jsonl").unlink()
    before = content(run.path)
    gc.sweep([run], models=False)
    assert content(run.path) == before


@pytest.mark.parametrize("damage", ["missing", "cut", "empty", "altered key", "settings"])
def test_without_a_plan_nothing_is_garbage(tmp_path: Path, damage: str) -> None:
    plan = plan_of()
    run = make_run(tmp_path, plan)
    leave_draft(run, plan)
    file = run.path / ("resolved.json" if damage == "settings" else "plan.json")
    text = file.read_text()
    if damage == "missing":
        file.unlink()
    else:
        key = plan.stage("seed").key
        file.write_text({"empty": "[]", "altered key": text.replace(key, "0" * 32, 1)}.get(damage, text[:-9]))
    before = content(run.path)
    for sweep in (*gc.look([run], models=True), *gc.sweep([run], models=True)):
        assert sweep.items == []
        assert file.name in sweep.skipped
        assert "\n" not in sweep.skipped
    assert content(run.path) == before


def test_a_run_at_work_is_left_alone(tmp_path: Path) -> None:
    plan = plan_of()
    run = make_run(tmp_path, plan)
    draft = leave_draft(run, plan)
    with run.locked():
        for sweep in (*gc.look([run], models=True), *gc.sweep([run], models=True)):
            assert sweep.items == []
            assert f"pid {os.getpid()}" in sweep.skipped
    assert draft.exists()


# --- what others use ---


def test_replaced_stages_go_but_not_the_model_that_final_shows(tmp_path: Path) -> None:
    run, _, judge = replaced_stage(tmp_path)
    (found,) = gc.sweep([run], models=True)
    gone = {item.path for item, _ in found.items}
    names = ["judge-1", "refine-1", "evaluate-1", "generate-2", "score-2-reference", "judge-2", "evaluate-2"]
    assert {path.name[3:-9] for path in gone} == set(names)
    assert judge.path in gone
    (kept,) = found.kept
    assert kept.path == final.model_shown(run.final).parents[1]
    assert "final" in kept.why
    assert (run.final / "model.safetensors").stat().st_size == WEIGHTS
    assert not any(path.exists() for path in gone)


@pytest.mark.parametrize("linked", [True, False], ids=["hard links", "copies"])
def test_what_another_run_took_over_stays_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linked: bool) -> None:
    run, old, judge = replaced_stage(tmp_path)
    second = plan_of(name="second")
    other = make_run(tmp_path, second, done=0)
    if not linked:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EXDEV, "cross-device link")))
    for stage in second.stages:
        adopt(folder_of(run, old, stage.id), folder_of(other, second, stage.id), run.name)
    before = content(other.path)
    looked = {item.path.name: sizes for item, sizes in gc.look([run], models=False)[0].items}
    swept = {item.path.name: sizes for item, sizes in gc.sweep([run], models=False)[0].items}
    assert swept == looked
    refine = swept[folder_of(other, second, "refine-1").path.name]
    assert refine.shared == (WEIGHTS + len("refine-1") if linked else 0)
    assert (refine.freed < WEIGHTS) == linked
    assert not judge.path.exists()
    assert content(other.path) == before
    assert all(not folder_of(other, second, stage.id).problems(deep=True) for stage in second.stages)


def test_a_file_with_two_names_counts_once_when_both_go(tmp_path: Path) -> None:
    plan = plan_of()
    run = make_run(tmp_path, plan)
    first = write(run.path / "stages" / "07-judge-1-0123abcd" / "output" / "pairs.jsonl", 1000)
    second = run.path / "stages" / "07-judge-1-0123abce" / "output" / "pairs.jsonl"
    second.parent.mkdir(parents=True)
    os.link(first, second)
    (looked,) = gc.look([run], models=False)
    assert [sizes for _, sizes in looked.items] == [gc.Size(1000, 0), gc.Size(0, 0)]
    (swept,) = gc.sweep([run], models=False)
    assert sum(sizes.freed for _, sizes in swept.items) == 1000


def test_a_stage_that_another_run_still_has_to_do_stays(tmp_path: Path) -> None:
    run, _, judge = replaced_stage(tmp_path)
    make_run(tmp_path, plan_of(name="second"), done=3)
    (found,) = gc.sweep([run], models=False)
    assert found.items == []
    assert {kept.why for kept in found.kept if kept.path == judge.path} == {
        "run second has this stage in its plan and can take it over"
    }
    assert judge.path.exists()
    (judge.path / MANIFEST).unlink()  # which makes it nothing to take over
    (found,) = gc.sweep([run], models=False)
    assert [item.path for item, _ in found.items] == [judge.path]


def test_a_stage_whose_path_is_in_a_recipe_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run, old, _ = replaced_stage(Path("runs"))
    model = folder_of(run, old, "refine-1").output / "model"
    (tmp_path / "elsewhere").mkdir()
    judged = {"reward": "implicit_reward", "reward_policy": str(model), "reward_reference": "org/model"}
    make_run(Path("runs"), plan_of(name="second", seed=8, evaluation=judged), done=0)
    monkeypatch.chdir(tmp_path / "elsewhere")  # where the paths of that recipe lead nowhere
    (found,) = gc.sweep([RunDir(tmp_path / "runs" / "first")], models=False)
    assert {kept.path.name[3:-9]: kept.why for kept in found.kept}["refine-1"] == "the recipe of run second reads it"
    assert (tmp_path / model / "model.safetensors").exists()
    assert not [item for item, _ in found.items if item.path.name[3:-9] == "refine-1"]


def test_a_text_that_only_looks_like_a_path_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run, old, _ = replaced_stage(Path("runs"))
    judge = folder_of(run, old, "judge-1")
    make_run(Path("runs"), plan_of(name="second", seed=8, description=str(judge.path)), done=0)
    (found,) = gc.sweep([run], models=False)
    assert judge.path in [item.path for item, _ in found.items]
    assert not judge.path.exists()


# --- models of finished runs ---


def test_models_before_the_final_one_lose_their_weights_only(tmp_path: Path) -> None:
    plan = plan_of()
    run = make_run(tmp_path, plan)
    before = content(run.path)
    (found,) = gc.sweep([run], models=True)
    assert [(item.path.parts[-3][3:-9], sizes) for item, sizes in found.items] == [
        ("seed", gc.Size(WEIGHTS, 0)),
        ("refine-1", gc.Size(WEIGHTS, 0)),
    ]
    after = content(run.path)
    gone = before.keys() - after.keys()
    assert {Path(name).name for name in gone} == {"model.safetensors"}
    assert len(gone) == 2
    changed = {Path(name).name for name in after if after[name] != before[name]}
    assert changed == {MANIFEST}
    # The run is finished as before, also after a deep look; nobody can take the weights over.
    assert all(run.is_done(stage, plan) for stage in plan.stages)
    assert all(not folder_of(run, plan, stage.id).problems(deep=True) for stage in plan.stages)
    other = RunDir(tmp_path / "other")
    assert find_reusable(tmp_path, plan.stage("seed"), besides=other, whose="all") is None
    assert find_reusable(tmp_path, plan.stage("judge-1"), besides=other, whose="all") is not None
    assert gc.look([run], models=True)[0].items == []


def test_models_beside_the_policies_lose_their_weights_with_them(tmp_path: Path) -> None:
    plan = plan_of(control=True, seed_training={"members": {"count": 2}}, judge={"peers": {}})
    run = make_run(tmp_path, plan)
    (found,) = gc.sweep([run], models=True)
    stages = {item.path.parts[-3][3:-9]: item.why for item, _ in found.items}
    assert stages == {
        "seed": "weights of a policy before the final one",
        "refine-1": "weights of a policy before the final one",
        "seed-member1": "weights of a member",
        "seed-member2": "weights of a member",
        "refine-1-b": "weights of the peer's chain",
        "control": "weights of the control",
    }


def test_weights_are_missed_as_soon_as_somebody_has_to_read_them(tmp_path: Path) -> None:
    plan = plan_of()
    run = make_run(tmp_path, plan)
    gc.sweep([run], models=True)
    shutil.rmtree(folder_of(run, plan, "evaluate-0").path)  # reads pi_0
    missing = {stage.id for stage in plan.stages if not run.is_done(stage, plan)}
    assert missing == {"seed", "evaluate-0"}
    commit(run, plan, "evaluate-0")
    shutil.rmtree(folder_of(run, plan, "evaluate-1").path)  # reads pi_1, whose training reads pi_0
    missing = {stage.id for stage in plan.stages if not run.is_done(stage, plan)}
    assert missing == {"seed", "refine-1", "evaluate-1"}
    assert missing == {stage.id for stage in plan.stages} - run.done(run.planned())


@pytest.mark.parametrize("case", ["unfinished", "changed", "new model, old link"])
def test_models_of_a_run_that_is_not_finished_stay(tmp_path: Path, case: str) -> None:
    plan = plan_of()
    if case == "unfinished":
        run = make_run(tmp_path, plan, done=len(plan.stages) - 1)
        run.final.unlink(missing_ok=True)
    else:
        run = make_run(tmp_path, plan)
        plan = plan_of(noise={"alpha": 0.3})
        run.write_recipe("text", plan.recipe, plan)
    if case == "new model, old link":
        for stage in plan.stages:
            if not run.is_done(stage, plan):
                commit(run, plan, stage.id)
    gc.sweep([run], models=True)
    for stage_id in ("seed", *(["refine-1", "refine-2"] if case != "changed" else [])):
        assert (folder_of(run, plan, stage_id).output / "model" / "model.safetensors").exists()


def test_weights_that_somebody_still_has_to_read_stay(tmp_path: Path) -> None:
    plan = plan_of()
    run = make_run(tmp_path, plan)
    shutil.rmtree(folder_of(run, plan, "evaluate-0").path)  # reads pi_0
    (found,) = gc.sweep([run], models=True)
    assert [item.path for item, _ in found.items] == [folder_of(run, plan, "refine-1").output / "model"]


def test_a_new_final_model_stays_before_the_link_shows_it(tmp_path: Path) -> None:
    """A finished run got one more iteration, and was killed when all but the link was done."""
    run = make_run(tmp_path, plan_of(data={"prompts_per_iteration": [32]}))
    plan = plan_of()
    run.write_recipe("text", plan.recipe, plan)
    for stage in plan.stages:
        if not run.is_done(stage, plan):
            commit(run, plan, stage.id)
    assert final.model_shown(run.final) == (folder_of(run, plan, "refine-1").output / "model").resolve()
    (found,) = gc.sweep([run], models=True)
    assert [item.path for item, _ in found.items if item.weights] == [folder_of(run, plan, "seed").output / "model"]


def test_a_run_without_iterations_keeps_its_model(tmp_path: Path) -> None:
    plan = plan_of(data={"prompts_per_iteration": []})
    run = make_run(tmp_path, plan)
    assert gc.look([run], models=True)[0].items == []


def test_models_that_two_finished_runs_share_are_freed_by_freeing_both(tmp_path: Path) -> None:
    plan, second = plan_of(name="first"), plan_of(name="second")
    run, other = make_run(tmp_path, plan), make_run(tmp_path, second, done=0)
    for stage in second.stages:
        adopt(folder_of(run, plan, stage.id), folder_of(other, second, stage.id), run.name)
    final.show(other, folder_of(other, second, "refine-2").output / "model", {})
    assert sum(sizes.freed for _, sizes in gc.look([run], models=True)[0].items) == 0
    looked = [sizes for sweep in gc.look([run, other], models=True) for _, sizes in sweep.items]
    swept = [sizes for sweep in gc.sweep([run, other], models=True) for _, sizes in sweep.items]
    assert sum(sizes.freed for sizes in looked) == sum(sizes.freed for sizes in swept) == 2 * WEIGHTS


# --- what goes wrong ---


class StoppedError(BaseException):
    """The end of the process, in the tests."""


@pytest.mark.parametrize(("after", "models"), [(0, False), (1, False), (2, False), (3, True), (4, True)])
def test_an_interrupted_deletion_leaves_a_consistent_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, models: bool
) -> None:
    """Three files of a replaced stage go, then the weights of two models: the end comes after so many of them."""
    plan = plan_of()
    run = make_run(tmp_path, plan)
    old = plan_of(judge={"type": "implicit_reward", "beta": 0.2})
    replaced = commit(run, old, "judge-1")
    write(replaced.work / "shards" / "s" / "0-8.parquet", 10)
    unlink, left = Path.unlink, [after]

    def stop(path: Path, missing_ok: bool = False) -> None:
        if path.name != ".holder":
            if not left[0]:
                raise StoppedError
            left[0] -= 1
        unlink(path, missing_ok=missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", stop)
        with pytest.raises(StoppedError):
            gc.sweep([run], models=models)
    assert all(run.is_done(stage, plan) for stage in plan.stages)
    assert replaced.is_done(old.stage("judge-1").key) == (after == 0)
    assert [item.path for item, _ in gc.look([run], models=models)[0].items]
    gc.sweep([run], models=models)
    assert not replaced.path.exists()
    assert sum(path.stat().st_size == WEIGHTS for path in run.path.glob("stages/*/output/model/*")) == 5 - 2 * models
    assert all(run.is_done(stage, plan) for stage in plan.stages)
    assert gc.look([run], models=models)[0].items == []


def test_a_full_disk_does_not_keep_gc_from_freeing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of()
    run = make_run(tmp_path, plan)
    draft = leave_draft(run, plan)

    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic, "write_text", full)
    (swept,) = gc.sweep([run], models=False)
    assert [sizes for _, sizes in swept.items] == [gc.Size(70, 0)]
    assert not draft.exists()


def test_what_cannot_be_deleted_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of()
    run = make_run(tmp_path, plan)
    draft = leave_draft(run, plan)
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.is_relative_to(draft):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    (swept,) = gc.sweep([run], models=False)
    assert isinstance(swept.failed, DataError)
    assert "half: cannot be deleted (Permission denied); change its permissions" in str(swept.failed)
    assert run.holder() is None


# --- the list of runs ---


def test_the_list_counts_shared_files_once_and_says_how_far(tmp_path: Path) -> None:
    plan, second = plan_of(name="first"), plan_of(name="second")
    run, other = make_run(tmp_path, plan), make_run(tmp_path, second, done=0)
    alone = size(run.path)
    os.link((run.final / "model.safetensors").resolve(), run.path / "another-name")
    assert size(run.path) == alone
    for stage in second.stages[:8]:
        adopt(folder_of(run, plan, stage.id), folder_of(other, second, stage.id), run.name)
    folder_of(other, second, plan.stages[8].id).new_attempt()
    for stamp, each in ((1000.0, run), (2000.0, other)):
        os.utime(each.path / "events.jsonl", (stamp, stamp))
    listed = overviews(tmp_path)
    rated = [row.evaluation and row.evaluation.metrics for row in listed]
    assert rated == [None, {"win_rate_vs_init": 0.625}]
    assert [(row.name, row.stages, row.state, row.note, row.touched) for row in listed] == [
        ("second", "8/16", "interrupted", f"next: {plan.stages[8].id}", 2000.0),
        ("first", "16/16", "done", "", 1000.0),
    ]
    sizes = [sum(row.files.values()) for row in listed]
    assert sizes == [size(other.path), size(run.path)]
    assert disk_usage(listed) < sum(sizes) - 2 * WEIGHTS  # base and sft at least


def test_old_and_damaged_runs_do_not_break_the_list(tmp_path: Path) -> None:
    plan = plan_of(name="old")
    old = make_run(tmp_path, plan, done=5)
    recipe = json.loads((old.path / "resolved.json").read_text())
    (old.path / "resolved.json").write_text(json.dumps({**recipe, "gone_in_this_version": 1}))
    lost = make_run(tmp_path, plan_of(name="lost"), done=1)
    (lost.path / "plan.json").write_text("{")
    listed = {row.name: row for row in overviews(tmp_path)}
    assert (listed["old"].stages, listed["old"].state) == ("5/16", "unfinished")
    assert listed["old"].note == f"next: {plan.stages[5].id}"
    assert (listed["lost"].stages, listed["lost"].state) == ("?", "unreadable")
    assert "plan.json" in listed["lost"].note
    assert sum(listed["lost"].files.values()) > 0


def test_a_run_that_stopped_because_of_its_judge_is_not_unfinished(tmp_path: Path) -> None:
    plan = plan_of(evaluation={"max_judge_decay": 0.02})
    run = make_run(tmp_path, plan, done=0)
    for stage in plan.stages[: plan.stages.index(plan.stage("generate-2"))]:
        figures = {"evaluate-0": {"heldout_accuracy": 0.8}, "evaluate-1": {"heldout_accuracy": 0.7}}
        commit(run, plan, stage.id, **figures.get(stage.id, {}))
    (row,) = overviews(tmp_path)
    assert row.state == "stopped early"
