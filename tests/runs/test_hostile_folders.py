"""Commands that make folders, pointed at folders of somebody else: exit 2, one line, and every byte as it was."""

import json
from pathlib import Path
from typing import Any

import pytest

from spa_recipes import api, benchmark_job
from spa_recipes.errors import RecipeError
from spa_recipes.state import marker
from tests.kit.cli import one_error
from tests.kit.recipes import mini, write_recipe
from tests.unit.test_hostile_folders import contents, somebodys_project


@pytest.mark.parametrize("by", ["--run-dir", "storage.runs_dir", "--set"])
def test_run_into_somebodys_folder(by: str, tmp_path: Path, spa_here: Any) -> None:
    somebodys_project(tmp_path / "work" / "proj")
    storage = {"storage": {"runs_dir": "work"}} if by == "storage.runs_dir" else {}
    write_recipe(tmp_path / "r.yaml", mini(name="proj", **storage))
    before = contents(tmp_path / "work")
    more = {"--run-dir": ["--run-dir", "work/proj"], "--set": ["--set", "storage.runs_dir=work"]}.get(by, [])
    line = one_error(spa_here("run", "r.yaml", "--until", "data", *more), 2)
    assert "work/proj: the folder holds final, recipe.yaml, and not a run" in line
    assert "--run-dir" in line
    assert contents(tmp_path / "work") == before


def test_run_into_the_recipes_own_folder(tmp_path: Path, spa_here: Any) -> None:
    write_recipe(tmp_path / "recipe.yaml", mini())
    before = contents(tmp_path)
    one_error(spa_here("run", "recipe.yaml", "--run-dir", "."), 2)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("command", ["resume", "gc"])
def test_other_commands_leave_what_only_looks_like_a_run(command: str, tmp_path: Path, spa_here: Any) -> None:
    """A folder with a resolved.json of some other tool."""
    folder = tmp_path / "runs" / "proj"
    somebodys_project(folder)
    (folder / "resolved.json").write_text(json.dumps(mini()))
    before = contents(folder)
    spa_here(command, "proj", *(["--yes"] if command == "gc" else []))
    assert contents(folder) == before


def test_a_run_of_this_tool_goes_on_and_is_marked(tmp_path: Path, spa_here: Any) -> None:
    write_recipe(tmp_path / "r.yaml", mini(compute={"executor": {"type": "local"}}))
    (tmp_path / "empty").mkdir()
    for _ in range(2):
        assert spa_here("run", "r.yaml", "--until", "data", "--run-dir", "empty").code == 0
    assert (tmp_path / "empty" / marker.MARKER).read_text() == "run\n"


JUDGE = ("judge", "--policy", "m", "--reference", "m", "--pairs", "p.jsonl", "--out")


def test_judge_with_somebodys_folder_beside_its_output(tmp_path: Path, spa_here: Any) -> None:
    somebodys_project(tmp_path / "labels.jsonl.spa")
    before = contents(tmp_path)
    for more in ([], ["--overwrite"]):
        line = one_error(spa_here(*JUDGE, "labels.jsonl", *more), 2)
        assert "labels.jsonl.spa: the folder holds final, recipe.yaml, and not work in progress" in line
    assert contents(tmp_path) == before


def test_judge_with_a_run_beside_its_output(tmp_path: Path, spa_here: Any) -> None:
    marker.claim(tmp_path / "out.spa", "run")
    assert "holds a run" in one_error(spa_here(*JUDGE, "out"), 2)


@pytest.mark.parametrize("out", [".", "..", "folder"])
def test_judge_into_a_folder(out: str, tmp_path: Path, spa_here: Any) -> None:
    (tmp_path / "folder").mkdir()
    assert "it is a folder" in one_error(spa_here(*JUDGE, out, "--overwrite"), 2)


EVALUATE = ("evaluate", "m", "--benchmark", "alpaca_eval", "--prompts", "p.json", "--set", "overwrite=true", "--out")


@pytest.mark.parametrize("out", [".", "..", "proj"])
def test_evaluate_replaces_no_folder_of_somebody_else(out: str, tmp_path: Path, spa_here: Any) -> None:
    somebodys_project(tmp_path / "proj")
    before = contents(tmp_path)
    one_error(spa_here(*EVALUATE, out), 2)
    assert contents(tmp_path) == before


def test_evaluate_replaces_no_run(tmp_path: Path, spa_here: Any) -> None:
    marker.claim(tmp_path / "proj", "run")
    assert "holds a run, and not results of spa evaluate" in one_error(spa_here(*EVALUATE, "proj"), 2)


def test_evaluate_keeps_a_persons_notes_among_its_results(tmp_path: Path, spa_here: Any) -> None:
    marker.claim(tmp_path / "done", "results")
    (tmp_path / "done" / "model_outputs.json").write_text("[]")
    (tmp_path / "done" / "notes.md").write_text("my thoughts")
    assert "notes.md in the folder of results is not from spa evaluate" in one_error(spa_here(*EVALUATE, "done"), 2)
    assert (tmp_path / "done" / "notes.md").read_text() == "my thoughts"


def test_results_are_replaced_by_results_only(tmp_path: Path) -> None:
    """What happens at the end of `spa evaluate`, where the folder may have changed since the start."""
    finished, out = tmp_path / "out.spa" / ".finished", tmp_path / "out"
    for folder, text in ((finished, "new"), (out, "old")):
        marker.claim(folder, "results")
        (folder / "model_outputs.json").write_text(text)
    (out / "late.md").write_text("x")
    with pytest.raises(RecipeError, match="late"):
        benchmark_job._put_in_place(finished, out, overwrite=True)
    (out / "late.md").unlink()
    with pytest.raises(RecipeError, match="there already"):
        benchmark_job._put_in_place(finished, out, overwrite=False)
    benchmark_job._put_in_place(finished, out, overwrite=True)
    assert contents(out) == {marker.MARKER: b"results\n", "model_outputs.json": b"new"}


def test_no_command_deletes_a_folder_but_through_the_marker() -> None:
    """`rmtree` in what the commands call is for folders inside of marked ones only."""
    assert "rmtree" not in Path(api.__file__).read_text()
