"""`spa recipes`: what a user sees who has the package and no recipe."""

from pathlib import Path

from spa_recipes.recipe.shipped import shipped_names
from tests.kit.cli import Answer, imported_by, one_error, run_spa


def test_the_list_says_what_each_is_and_needs(tmp_path: Path) -> None:
    done = run_spa(tmp_path, "recipes")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == shipped_names()
    (line,) = [line for line in lines if line.startswith("ultrafeedback_3p3_24gb")]
    assert line.endswith("  one GPU with 24 GB")
    assert " 2,000 " in line


def test_a_recipe_is_shown_copied_checked_and_planned_by_name(tmp_path: Path) -> None:
    shown = run_spa(tmp_path, "recipes", "show", "quickstart").stdout
    done = run_spa(tmp_path, "recipes", "copy", "quickstart", "my own.yaml")
    assert done.stdout.strip() == "wrote my own.yaml; next: edit it, then `spa plan 'my own.yaml'`"
    assert (tmp_path / "my own.yaml").read_text() == shown
    again = run_spa(tmp_path, "recipes", "copy", "quickstart", "my own.yaml")
    told = one_error(Answer(again.returncode, again.stdout, again.stderr), 2)
    assert told == "my own.yaml: the file is there already; choose another name"
    assert run_spa(tmp_path, "recipes", "copy", "dpo_10").returncode == 0
    assert (tmp_path / "dpo_10.yaml").exists()
    checked = run_spa(tmp_path, "validate", "quickstart", "dpo_10.yaml")
    assert checked.stdout.splitlines() == [
        "quickstart: ok (quickstart, 2 iterations)",
        "dpo_10.yaml: ok (dpo_10, 0 iterations)",
    ]
    by_name, by_file = (run_spa(tmp_path, "plan", name, "--json").stdout for name in ("quickstart", "my own.yaml"))
    assert by_name == by_file


def test_a_name_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    for command in ("show", "copy"):
        done = run_spa(tmp_path, "recipes", command, "quickstrat")
        told = one_error(Answer(done.returncode, done.stdout, done.stderr), 2)
        assert told == "quickstrat: no shipped recipe has this name; `spa recipes` lists them"
    assert not list(tmp_path.iterdir())


def test_the_list_imports_no_heavy_library(tmp_path: Path) -> None:
    done, heavy = imported_by(tmp_path, "recipes")
    assert done.returncode == 0, done.stderr
    assert heavy == []
