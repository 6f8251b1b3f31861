"""`spa resume` without a name goes on with a run that this user started; what was changed in a run's folder it says."""

import shutil
from pathlib import Path
from typing import Any

from spa_recipes import api
from spa_recipes.cli.resume import tell_changed_file
from spa_recipes.run.rundir import RunDir
from spa_recipes.state import user_state
from tests.kit.cli import one_error, run_spa
from tests.kit.recipes import mini, write_recipe


def start(folder: Path, name: str) -> Path:
    """Begin a run, or go on with one, and do no stage."""
    recipe = write_recipe(folder / f"{name}.yaml", mini(name=name))
    plan, run, text, path = api.prepare(recipe, run_dir=folder / "runs" / name)
    run.write_recipe(text, plan.recipe, plan, path=path)
    return run.path


def test_a_run_folder_from_elsewhere_is_not_resumed_without_its_name(tmp_path: Path, spa_here: Any) -> None:
    foreign = start(tmp_path, "foreign")
    (foreign / user_state.MARK).unlink()
    line = one_error(spa_here("resume"), 2)
    assert line.startswith("no unfinished run in runs was started by you")
    assert line.endswith("name it: foreign")
    assert not list(foreign.glob("stages/*"))


def test_a_newer_run_from_elsewhere_does_not_go_before_ones_own(tmp_path: Path) -> None:
    mine = start(tmp_path, "mine")
    foreign = start(tmp_path, "foreign")
    (foreign / user_state.MARK).unlink()
    (foreign / "events.jsonl").touch()
    assert api.prepare_resume(None, tmp_path / "runs").run.path == mine
    assert api.prepare_resume("foreign", tmp_path / "runs").run.path == foreign


def test_a_run_from_elsewhere_that_was_gone_on_with_is_still_from_elsewhere(tmp_path: Path) -> None:
    foreign = start(tmp_path, "foreign")
    (foreign / user_state.MARK).unlink()
    for missing in ("plan.json", "resolved.json"):
        (foreign / missing).unlink()
        start(tmp_path, "foreign")
    assert not user_state.started_here(foreign)


def test_resume_says_that_the_file_of_the_recipe_was_changed(tmp_path: Path, capsys: Any) -> None:
    run = RunDir(start(tmp_path, "mine"))
    tell_changed_file(run)
    assert capsys.readouterr().err == ""
    file = tmp_path / "mine.yaml"
    file.write_text(file.read_text() + "seed: 7\n")
    tell_changed_file(run)
    said = capsys.readouterr().err
    assert f"{file} was changed since this run read it; the run goes on with the recipe that it has" in said
    assert f"spa run {file} --run-dir {run.path} --accept" in said
    file.unlink()  # then there is nothing to choose between
    tell_changed_file(run)
    assert capsys.readouterr().err == ""


def test_resume_says_which_texts_were_changed_and_leaves_them(finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished / "runs" / "mini", tmp_path / "runs" / "mini", symlinks=True))
    untouched = run_spa(tmp_path, "resume", "mini")
    assert (untouched.returncode, "since the run wrote it" in untouched.stdout) == (0, False), untouched.stderr
    changed = {run / "recipe.yaml": "name: another\n", run / "final" / "README.md": "my card\n"}
    for file, text in changed.items():
        file.write_text(text)
    done = run_spa(tmp_path, "resume", "mini")
    assert done.returncode == 0, done.stderr
    for file, text in changed.items():
        assert f"{file.relative_to(tmp_path)} was changed since the run wrote it" in done.stdout
        assert file.read_text() == text
    (run / "final" / "README.md").unlink()
    assert "README.md" not in run_spa(tmp_path, "resume", "mini").stdout
    assert (run / "final" / "README.md").is_file()
