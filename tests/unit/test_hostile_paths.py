"""Names and links that somebody planted in a run's folder: nothing outside of it is read, written, deleted or sent."""

import json
import os
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spa_recipes import api
from spa_recipes.errors import DataError, RecipeError
from spa_recipes.plan import Plan
from spa_recipes.publish import collect
from spa_recipes.run import final, gc
from spa_recipes.run.overview import overviews
from spa_recipes.run.preflight import check_inputs
from spa_recipes.run.rundir import RunDir, find_reusable
from spa_recipes.state import atomic, inside, marker
from spa_recipes.state.stagedir import MANIFEST, FileRecord, StageDir
from spa_recipes.training.checkpoints import is_complete
from tests.kit.finished_runs import make_run as make_real_run
from tests.kit.garbage import folder_of, make_run
from tests.kit.plans import plan_of

NAMES_OUTSIDE = ["..", "../x", "a/../../x", "/etc/passwd", "", ".", "a//b", "./a", "a/", "a\0b"]


@pytest.fixture
def plan() -> Plan:
    return plan_of()


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder of the user's, outside of all runs."""
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work\n")
    return folder


def is_untouched(victim: Path) -> bool:
    return {path.name: path.read_text() for path in victim.iterdir()} == {"thesis.tex": "years of work\n"}


def forge(folder: StageDir, **changes: Any) -> None:
    """Give a stage a manifest with changes, and a digest that fits them."""
    manifest = folder.manifest()
    assert manifest is not None
    (folder.path / MANIFEST).write_text(json.dumps(replace(manifest, **changes).to_json()))


# --- names


@pytest.mark.parametrize("name", NAMES_OUTSIDE)
def test_a_name_that_leads_elsewhere_is_none(name: str) -> None:
    with pytest.raises(ValueError, match="not the name"):
        inside.plain(name)


def test_names_as_stages_write_them_are_taken() -> None:
    for name in ("pairs.jsonl", "model/config.json", "mt/model_answer/a b.jsonl", "..a", "a..b", ".hidden"):
        assert inside.plain(name) == name


@pytest.mark.parametrize("name", NAMES_OUTSIDE)
def test_a_manifest_with_such_a_name_is_none(tmp_path: Path, plan: Plan, name: str) -> None:
    run = make_run(tmp_path / "runs", plan)
    folder = folder_of(run, plan, "judge-1")
    manifest = folder.manifest()
    assert manifest is not None
    forge(folder, files={**manifest.files, name: FileRecord(1, "0" * 64)})
    assert folder.manifest() is None


def test_a_forged_list_of_given_up_files_deletes_nothing_outside(tmp_path: Path, plan: Plan, victim: Path) -> None:
    run = make_run(tmp_path / "runs", plan)
    folder = folder_of(run, plan, "judge-1")
    outside = os.path.relpath(victim / "thesis.tex", folder.output)
    forge(folder, pruned=(outside,))
    gc.sweep([run], models=True)
    manifest = folder.manifest()
    assert manifest is None
    assert is_untouched(victim)


def test_only_files_of_the_stage_can_be_given_up(tmp_path: Path, plan: Plan) -> None:
    run = make_run(tmp_path / "runs", plan)
    folder = folder_of(run, plan, "judge-1")
    (folder.output / "mine.txt").write_text("a person's")
    forge(folder, pruned=("mine.txt",))
    gc.sweep([run], models=True)
    assert (folder.output / "mine.txt").exists()


def test_a_stage_that_would_write_elsewhere_is_not_taken_over(tmp_path: Path, plan: Plan, victim: Path) -> None:
    run = make_run(tmp_path / "runs", plan)
    folder = folder_of(run, plan, "judge-1")
    planted = folder.output / "a" / "b"
    planted.mkdir(parents=True)
    (planted / "x").write_text("x")
    manifest = folder.manifest()
    assert manifest is not None
    forge(folder, files={**manifest.files, "a/b/../../../../../../../thesis/x": FileRecord(1, "0" * 64)})
    assert (
        find_reusable(tmp_path / "runs", plan.stage("judge-1"), besides=RunDir(tmp_path / "runs" / "b"), whose="all")
        is None
    )
    assert is_untouched(victim)


@pytest.mark.parametrize("name", ["../..", "x/../../../../thesis", "*", "a b", "", 7])
def test_a_plan_with_a_stage_that_leads_elsewhere_is_none(tmp_path: Path, plan: Plan, name: object) -> None:
    run = make_run(tmp_path / "runs", plan)
    entries = json.loads((run.path / "plan.json").read_text())
    entries[3]["id"] = name
    (run.path / "plan.json").write_text(json.dumps(entries))
    with pytest.raises(RecipeError, match="cannot be read"):
        run.planned()


def test_a_checkpoint_that_vouches_for_files_elsewhere_is_not_whole(tmp_path: Path, victim: Path) -> None:
    checkpoint = tmp_path / "checkpoint-4"
    checkpoint.mkdir()
    facts = {"size": 14, "sha256": "6d2d6f2d1c7a"}
    (checkpoint / "spa_checkpoint.json").write_text(json.dumps({"files": {"../thesis/thesis.tex": facts}}))
    assert not is_complete(checkpoint)


# --- links, pipes and devices

PLACES = [
    "stages",
    "stages/{judge}",
    "stages/{judge}/work",
    "stages/{judge}/output",
    "stages/{judge}/output.draft-1",
    "stages/{judge}/output/model",
    "stages/{judge}/attempts",
    "stages/{judge}/attempts/1/worker.log",
    "stages/{judge}/work/checkpoints/checkpoint-4/optimizer.pt",
    "events.jsonl",
    "report.html",
    "recipe.yaml",
    "plan.json",
    ".lock",
    ".holder",
]


def in_place(run: RunDir, plan: Plan, place: str, put: Callable[[Path], None]) -> Path:
    """Put something in the place of a file or folder of a run; what was there is moved away."""
    path = run.path / place.format(judge=folder_of(run, plan, "judge-1").path.name)
    if path.exists():
        path.rename(run.path.parent.parent / "moved away")
    path.parent.mkdir(parents=True, exist_ok=True)
    put(path)
    return path


def refuse(run: RunDir, plan: Plan, where: Path, spa_here: Any) -> None:
    """Every way into the run says where it leads elsewhere, and does nothing."""
    for way in (run.check, lambda: check_inputs(plan, run), lambda: run.locked().__enter__()):
        with pytest.raises(DataError) as caught:
            way()
        assert caught.value.where == str(where)
    for sweep in (*gc.look([run], models=True), *gc.sweep([run], models=True)):
        assert sweep.items == []
        assert str(where) in sweep.skipped
    (row,) = overviews(run.path.parent)
    assert (row.state, str(where) in row.note) == ("unreadable", True)
    runs_dir = ("--runs-dir", str(run.path.parent))
    for command in (
        ("resume", run.name),
        ("status", run.name),
        ("report", run.name),
        ("compare", run.name),
        ("gc", run.name, "--yes"),
        ("push", run.name, "--repo-id", "me/model", "--dry-run"),
    ):
        done = spa_here(*command, *runs_dir)
        assert (done.code, str(where) in done.err, done.err.count("\n")) == (3, True, 1), (command, done)


@pytest.mark.parametrize("place", PLACES)
def test_a_link_leads_nothing_out_of_the_run(
    tmp_path: Path, plan: Plan, victim: Path, place: str, spa_here: Any
) -> None:
    run = make_run(tmp_path / "runs", plan)
    path = in_place(
        run, plan, place, lambda path: path.symlink_to(victim if "." not in path.name else victim / "thesis.tex")
    )
    refuse(run, plan, path, spa_here)
    assert is_untouched(victim)
    second = RunDir(tmp_path / "runs" / "second")
    assert find_reusable(tmp_path / "runs", plan.stage("judge-1"), besides=second, whose="all") is None


@pytest.mark.parametrize("place", ["plan.json", "events.jsonl", ".lock", "stages/{judge}/manifest.json"])
def test_a_pipe_makes_nobody_wait(tmp_path: Path, plan: Plan, place: str, spa_here: Any) -> None:
    run = make_run(tmp_path / "runs", plan)
    refuse(run, plan, in_place(run, plan, place, os.mkfifo), spa_here)


def test_a_folder_of_runs_may_be_a_link_and_so_may_a_run(tmp_path: Path, plan: Plan) -> None:
    run = make_run(tmp_path / "big disk" / "runs", plan)
    (tmp_path / "runs").symlink_to(tmp_path / "big disk" / "runs")
    RunDir(tmp_path / "runs" / run.name).check()
    (tmp_path / "one").symlink_to(run.path)
    RunDir(tmp_path / "one").check()
    (run.path / "my notes").mkdir()
    (run.path / "my notes" / "paper").symlink_to(tmp_path)  # nothing of a run is read or made there
    run.check()


def test_a_line_is_not_appended_through_a_link(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "events.jsonl").symlink_to(victim / "thesis.tex")
    with pytest.raises(OSError, match="symbolic links"):
        atomic.append_line(tmp_path / "events.jsonl", "x")
    assert is_untouched(victim)


def test_a_file_is_written_under_a_new_name_and_through_no_link(
    tmp_path: Path, victim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where somebody knew the name under which it will be written."""
    known = uuid.uuid4()
    monkeypatch.setattr("uuid.uuid4", lambda: known)
    atomic.temporary_name(tmp_path / "plan.json").symlink_to(victim / "thesis.tex")
    with pytest.raises(FileExistsError):
        atomic.write_text(tmp_path / "plan.json", "x")
    assert is_untouched(victim)
    monkeypatch.undo()
    (tmp_path / "plan.json").symlink_to(victim / "thesis.tex")
    atomic.write_text(tmp_path / "plan.json", "x")
    assert is_untouched(victim)
    assert not (tmp_path / "plan.json").is_symlink()


# --- the final folder


def test_a_persons_link_beside_the_final_model_is_not_the_model(tmp_path: Path, plan: Plan, victim: Path) -> None:
    run = make_run(tmp_path / "runs", plan)
    (run.final / "a link").symlink_to(victim / "thesis.tex")
    assert final.model_shown(run.final) == (folder_of(run, plan, "refine-2").output / "model").resolve()


def test_push_sends_what_the_run_wrote_and_nothing_else(tmp_path: Path, plan: Plan, victim: Path) -> None:
    run = make_real_run(tmp_path / "runs" / "mini", plan)
    (run.final / "token.txt").write_text("hf_secret")
    (run.final / "more").mkdir()
    (run.final / "more" / "x").symlink_to(victim / "thesis.tex")
    shipment = collect(run)
    assert [file.name for file in shipment.files] == ["README.md", "config.json", "model.safetensors", "recipe.yaml"]
    assert shipment.left == ["more/x", "token.txt"]
    card = run.final / "README.md"
    card.write_text("a person's own card")
    assert collect(run).files[0].size == len("a person's own card")
    card.unlink()
    card.symlink_to(victim / "thesis.tex")
    with pytest.raises(DataError, match=r"a link to .*thesis.tex, which the run did not make"):
        collect(run)


def test_a_run_is_planned_in_no_folder_that_leads_elsewhere(tmp_path: Path, victim: Path) -> None:
    from tests.kit.recipes import mini, write_recipe

    recipe = write_recipe(tmp_path / "r.yaml", mini())
    marker.claim(tmp_path / "proj", "run")
    (tmp_path / "proj" / "stages").symlink_to(victim)
    with pytest.raises(DataError, match="a run writes into its own folder only"):
        api.prepare(recipe, run_dir=tmp_path / "proj")
