"""`spa gc` from the command line, on made-up runs and on a real one."""

import json
import shutil
from pathlib import Path

import pytest

from spa_recipes.run.rundir import RunDir
from spa_recipes.state.stagedir import adopt
from tests.kit.cli import Spa, run_spa
from tests.kit.garbage import (
    LEFT,
    folder_of,
    leave_checkpoint,
    leave_damaged_shard,
    leave_draft,
    leave_uncommitted,
    make_run,
    replaced_stage,
    write,
)
from tests.kit.plans import plan_of
from tests.kit.recipes import mini, write_recipe
from tests.kit.runs import attempts, outputs

# --- the command ---


def test_the_command_says_first_and_deletes_with_yes(spa: Spa, tmp_path: Path) -> None:
    assert spa("gc").stdout == "no runs in runs\n"
    plan = plan_of()
    run = make_run(tmp_path / "runs", plan)
    assert spa("gc").stdout == "nothing to delete\n"
    draft, busy = leave_draft(run, plan), make_run(tmp_path / "runs", plan_of(name="busy", seed=8))
    with busy.locked():
        said = spa("gc", "mini")
        everywhere = spa("gc", "--runs-dir", "runs")
    assert said.returncode == 0, said.stderr
    assert draft.exists()
    assert "70 B" in said.stdout
    assert "would free 70 B" in said.stdout
    assert said.stdout.splitlines()[-1] == "nothing was deleted; `spa gc mini --yes` does it"
    assert "busy: skipped, in use by" in everywhere.stdout
    assert everywhere.stdout.splitlines()[-1] == "nothing was deleted; `spa gc --runs-dir runs --yes` does it"
    done = spa("gc", "-y")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "freed 70 B"
    assert not draft.exists()
    wrong = spa("gc", "nothing")
    assert wrong.returncode == 2
    assert "nothing" in wrong.stderr
    assert len(wrong.stderr.splitlines()) == 1


def test_shared_files_are_named_in_the_listing(spa: Spa, tmp_path: Path) -> None:
    run, old, _ = replaced_stage(tmp_path / "runs")
    second = plan_of(name="second")
    other = make_run(tmp_path / "runs", second, done=0)
    for stage in second.stages:
        adopt(folder_of(run, old, stage.id), folder_of(other, second, stage.id), run.name)
    said = spa("gc").stdout
    assert "5.0 kB shared" in said
    assert "deleting one of the names frees nothing" in said
    assert "kept" in said


# --- a real run ---


@pytest.fixture(scope="module")
def tidy(home: Path) -> Path:
    """The run of which nothing is kept that its recipe does not name."""
    write_recipe(home / "mini.yaml", mini())
    assert run_spa(home, "run", "mini.yaml").returncode == 0
    assert "freed" in run_spa(home, "gc", "--yes").stdout
    return home


def test_a_run_that_was_cleaned_goes_on_as_if_nothing_had_been(tidy: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(tidy, home, symlinks=True)
    run, plan = RunDir(home / "runs" / "mini"), plan_of()
    for leave in LEFT:
        if leave not in (leave_uncommitted, leave_draft, leave_checkpoint, leave_damaged_shard):
            leave(run, plan)
    write(folder_of(run, plan, "refine-2").draft(1) / "half", 70)
    before, tried = outputs(tidy), attempts(tidy)
    cleaned = run_spa(home, "gc", "--yes")
    assert cleaned.returncode == 0, cleaned.stderr
    assert "freed 420 B" in cleaned.stdout
    again = run_spa(home, "resume", "mini")
    assert again.returncode == 0, again.stderr
    assert attempts(home) == tried
    assert outputs(home) == before


def test_without_earlier_models_a_finished_run_is_finished_and_a_change_trains_them_again(
    tidy: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    shutil.copytree(tidy, home, symlinks=True)
    before, tried = outputs(tidy), attempts(tidy)
    cleaned = run_spa(home, "gc", "mini", "--models", "--yes")
    assert cleaned.returncode == 0, cleaned.stderr
    pruned = {name for name in before if name not in outputs(home)}
    assert {Path(name).parts[0][3:-9] for name in pruned} == {"seed", "refine-1"}
    again = run_spa(home, "resume", "mini")
    assert again.returncode == 0, again.stderr
    assert attempts(home) == tried
    assert "16/16" in run_spa(home, "status").stdout
    changed = mini(noise={"lambdas": [0.5, 0.125]})  # refine-2 and what follows
    write_recipe(home / "mini.yaml", changed)
    states = json.loads(run_spa(home, "plan", "mini.yaml", "--json").stdout)
    assert [stage["id"] for stage in states if stage["state"] == "to do"] == [
        "seed",
        "refine-1",
        "refine-2",
        "evaluate-2",
    ]
    done = run_spa(home, "run", "mini.yaml", "--accept")
    assert done.returncode == 0, done.stderr
    assert "freed by `spa gc --models` and is needed again" in done.stdout
    after = outputs(home)
    assert {name: after[name] for name in pruned} == {name: before[name] for name in pruned}
    redone = [name[3:-9] for name in attempts(home) if name not in tried or ".damaged-" in name]
    assert "refine-2" in redone
    assert not {"generate-1", "judge-1", "judge-2", "evaluate-0"} & set(redone)
