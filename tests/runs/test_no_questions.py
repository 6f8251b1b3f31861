"""A normal user's day has no question: the commands of the documents run without a prompt.

What is not run here to its end is asked all that would be asked before anything starts. That each shipped recipe asks
nothing is in tests/unit/test_hostile_recipe.py.
"""

import os
import pty
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from spa_recipes.cli.consent import consent_of
from spa_recipes.cli.progress import PlainReporter
from spa_recipes.plan import compile_plan
from spa_recipes.recipe.load import load_recipe
from spa_recipes.recipe.shipped import find_recipe, shipped_names
from spa_recipes.run.rundir import RunDir
from spa_recipes.state.digests import DigestMemo

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "recipes" / "README.md"]


def runs_in(document: Path) -> list[tuple[str, list[str]]]:
    """The recipe and the `--set` of each `spa run` and `spa plan` of a shipped recipe in a document."""
    found = []
    for line in re.findall(r"spa (?:run|plan) ([^`#\n]*)", document.read_text()):
        recipe, *others = shlex.split(line)
        if recipe in shipped_names():
            found.append((recipe, [others[i + 1] for i, word in enumerate(others[:-1]) if word == "--set"]))
    return found


SHOWN = [(recipe, sets) for document in DOCUMENTS for recipe, sets in runs_in(document)]


@pytest.mark.parametrize(("recipe", "overrides"), SHOWN, ids=str)
def test_a_recipe_as_the_documents_run_it_asks_nothing(
    recipe: str, overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "nothing-was-agreed-to"))
    monkeypatch.setattr(sys, "stdin", None)  # whoever reads from it fails
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "pairs.jsonl").write_text("{}\n")  # the example's, which a user brings
    plan = compile_plan(load_recipe(find_recipe(Path(recipe)), overrides).recipe, DigestMemo(tmp_path / "memo"))
    consent_of(PlainReporter(), trust=False)(plan, RunDir(tmp_path / "run"))


def test_the_documents_show_some() -> None:
    assert "quickstart" in {recipe for recipe, _ in SHOWN}


COMMANDS = [
    # Of this executor the first stage imports nothing heavy. Which one it is, is nothing to ask about.
    ["run", "quickstart", "--until", "data", "--set", "compute.executor.type=local"],
    ["plan", "quickstart"],
    ["status"],
    ["status", "quickstart"],
    ["resume", "--until", "data"],
    ["gc"],
    ["validate", "quickstart"],
    ["init", "my.yaml"],
]


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "XDG_STATE_HOME": str(folder / "state"), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


def test_with_no_input_at_all(tmp_path: Path) -> None:
    """As in a cron job whose standard input is closed."""
    for command in COMMANDS:
        line = shlex.join([sys.executable, "-m", "spa_recipes.cli", *command]) + " <&-"
        done = subprocess.run(line, shell=True, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True)
        assert done.returncode == 0, (command, done.stderr)
        assert "[y/N]" not in done.stdout + done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="reads a terminal as Linux has it")
def test_on_a_terminal(tmp_path: Path) -> None:
    """Where a question could be asked, nobody answers: a command that asked would wait."""
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "spa_recipes.cli", *COMMANDS[0]]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment(tmp_path), stdin=slave, stdout=slave, stderr=slave
    )
    os.close(slave)
    said = b""
    try:
        while part := os.read(master, 1 << 16):
            said += part
    except OSError:  # the terminal's other end was closed
        pass
    assert process.wait(timeout=120) == 0, said
    assert b"[y/N]" not in said
