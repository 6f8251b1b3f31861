"""Outputs that nobody reads, that are full, or that cannot show a character: the work is done all the same."""

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.kit.cli import environment_with, run_fresh, run_spa
from tests.kit.processes import wait_for
from tests.kit.recipes import mini, write_recipe

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="uses /dev/full and closes terminals")

RUN = [sys.executable, "-m", "spa_recipes.cli", "run", "mini.yaml", "--until", "data"]
UNREAD = "nobody reads the output"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a recipe whose first stage needs no heavy library."""
    write_recipe(tmp_path / "mini.yaml", mini(compute={"executor": {"type": "local"}}))
    return tmp_path


def events(folder: Path) -> list[dict[str, Any]]:
    path = folder / "runs" / "mini" / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def names(folder: Path) -> list[str]:
    return [event["event"] for event in events(folder)]


def test_head_reads_one_line_and_the_run_goes_on(folder: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", '"$@" | head -1; exit ${PIPESTATUS[0]}', "bash", *RUN],
        cwd=folder,
        env=environment_with(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1
    assert names(folder).count(UNREAD) == 1
    assert names(folder)[-1] == "run paused"


def test_a_full_output_is_told_on_standard_error_and_the_run_goes_on(folder: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(RUN, cwd=folder, env=environment_with(), stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        "standard output cannot be written (No space left on device): what follows is not shown"
    ]
    assert names(folder).count(UNREAD) == 1
    assert names(folder)[-1] == "run paused"


def test_closed_streams_are_no_file_of_the_run(folder: Path) -> None:
    done = subprocess.run(["bash", "-c", '"$@" <&- >&- 2>&-', "bash", *RUN], cwd=folder, env=environment_with())
    assert done.returncode == 0
    assert names(folder)[-1] == "run paused"


def test_a_run_that_ignores_hangups_outlives_its_terminal(folder: Path) -> None:
    terminal, inside = pty.openpty()
    running = subprocess.Popen(
        RUN,
        cwd=folder,
        env={**environment_with(), "TERM": "xterm"},
        stdin=inside,
        stdout=inside,
        stderr=inside,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    os.close(inside)
    wait_for(lambda: "stage started" in names(folder))
    os.close(terminal)
    assert running.wait() == 0
    assert names(folder).count(UNREAD) == 1
    assert names(folder)[-1] == "run paused"


def test_a_closed_terminal_stops_a_run_as_sigterm_does(folder: Path) -> None:
    running = subprocess.Popen(
        RUN,
        cwd=folder,
        env=environment_with(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # whatever the tests were started with
    )
    wait_for(lambda: "stage started" in names(folder))
    running.send_signal(signal.SIGHUP)
    _, err = running.communicate()
    assert running.returncode == 129
    assert err.splitlines() == ["stopped; finished work is kept: `spa resume`, or the same command again, continues"]
    assert events(folder)[-1]["event"] == "run stopped"
    assert events(folder)[-1]["reason"] == "SystemExit: 129"


NARROW = [
    {"PYTHONIOENCODING": "ascii"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
]


@pytest.mark.parametrize("variables", NARROW, ids=["ascii output", "ascii everywhere"])
def test_a_folder_that_the_output_cannot_spell_is_no_hindrance(folder: Path, variables: dict[str, str]) -> None:
    place = folder / "Köln…"
    place.mkdir()
    (folder / "mini.yaml").rename(place / "mini.yaml")
    done = run_fresh(place, *RUN[3:], "--run-dir", place / "Läufe" / "mini", **variables)
    assert done.returncode == 0, done.stderr
    status = run_fresh(place, "status", place / "Läufe" / "mini", **variables)
    assert status.returncode == 0, status.stderr
    assert "done" in status.stdout


def test_spa_judge_writes_its_whole_output_where_nothing_can_be_shown(tmp_path: Path) -> None:
    from spa_recipes.data.rows import write_jsonl
    from spa_recipes.sandbox.model import build_model
    from spa_recipes.sandbox.rows import preference_rows

    for seed, name in enumerate(("policy", "reference")):
        build_model(tmp_path / name, seed=seed)
    write_jsonl(tmp_path / "pairs.jsonl", preference_rows(8, seed=0))
    command = ["judge", "--policy", "policy", "--reference", "reference", "--pairs", "pairs.jsonl"]
    command += ["--max-length", "256", "--max-prompt-length", "128", "--out", "beschriftet-für-später.jsonl"]
    done = run_spa(tmp_path, *command, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert r"beschriftet-f\xfcr-sp\xe4ter.jsonl" in done.stdout
    assert len((tmp_path / "beschriftet-für-später.jsonl").read_text().splitlines()) == 8
