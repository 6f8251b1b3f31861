"""`spa sweep`: real runs of a miniature, one of which fails."""

import re
from pathlib import Path

import pytest

from tests.kit.cli import run_spa
from tests.kit.recipes import mini, write_recipe
from tests.kit.runs import attempts

RECIPE = mini(
    data={"pairs": {"rows": 200}, "seed_labels": 32, "prompts_per_iteration": [], "heldout": 16},
    sft={"data": {"rows": 64}},
)
SWEEP = """
name: s
recipe: mini.yaml
seeds: [1]
variants:
  - {name: sft, policy: init}
  - {name: dpo, label: DPO}
  - {name: broken, set: {seed_training.learning_rate: 1e30, seed_training.num_train_epochs: 3}}
  - {name: faster, set: {seed_training.learning_rate: 1e-3}}
control: dpo
metrics: [label_accuracy, win_rate, tokens, steps]
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the sweep was run; its output is in `out`, `err` and `code`."""
    home = tmp_path_factory.mktemp("sweep")
    write_recipe(home / "mini.yaml", RECIPE)
    (home / "sweep.yaml").write_text(SWEEP)
    done = run_spa(home, "sweep", "sweep.yaml")
    for name, text in (("out", done.stdout), ("err", done.stderr), ("code", str(done.returncode))):
        (home / name).write_text(text)
    return home


def test_the_runs_share_their_stages(home: Path) -> None:
    assert {name.split("-")[1] for name in attempts(home, "s-sft-1")} == {"data", "base", "sft", "evaluate", "seed"}
    made = {name.split("-", 1)[1].rpartition("-")[0] for name in attempts(home, "s-faster-1")}
    assert made == {"seed", "evaluate-0"}


def test_a_run_that_fails_is_named_at_the_end_and_the_others_are_done(home: Path) -> None:
    assert (home / "code").read_text() == "1"
    (error,) = (home / "err").read_text().splitlines()
    assert error.startswith("error: 1 of 3 runs failed: s-broken-1;")
    assert re.search(r"s-broken-1 failed: .* is not finite", (home / "out").read_text())
    assert (home / "runs" / "s-faster-1" / "final").exists()


def test_the_tables_are_written_and_shown(home: Path) -> None:
    values = (home / "sweeps" / "s" / "values.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in values] == ["variant", "sft", "dpo", "faster"]
    assert values[2].endswith(",2")  # optimizer steps
    table = (home / "sweeps" / "s" / "table.md").read_text()
    assert "Of 1 seeds, broken has none." in table
    assert table.splitlines()[-1] in (home / "out").read_text()


def test_the_plan_says_what_is_left(home: Path) -> None:
    done = run_spa(home, "sweep", "sweep.yaml", "--plan")
    assert done.returncode == 0, done.stderr
    assert "4 variants x 1 seed, 3 runs, 2 of them done; 10 stages, 8 more shared" in done.stdout
    assert "to do: 2 stages of 10, 6 optimizer steps" in done.stdout


def test_the_same_command_tries_what_is_left_and_nothing_again(home: Path) -> None:
    whole = attempts(home, "s-sft-1"), attempts(home, "s-faster-1")
    again = run_spa(home, "sweep", "sweep.yaml")
    assert again.returncode == 1
    assert (attempts(home, "s-sft-1"), attempts(home, "s-faster-1")) == whole
    assert [*attempts(home, "s-broken-1").values()] == [2]
