"""Runs that were moved, copied or renamed, odd paths, clocks that jump, and several runs and people at once."""

import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.kit import refused_calls
from tests.kit.cli import Answer, one_error, run_spa, start
from tests.kit.processes import stopped_in, wait_for
from tests.kit.recipes import mini, write_recipe
from tests.kit.refused_calls import Refused
from tests.kit.runs import attempts, outputs, stage_dir

STAGES = 16
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
STOPPED_WHILE_WRITING = refused_calls.variable(Refused("write", "SIGSTOP", r"/\.seed\.jsonl", times=1))
"""The data stage of a run is stopped by a signal when it has written a part of its files."""


def answer(folder: Path, *arguments: str | Path, **variables: str) -> Answer:
    done = run_spa(folder, *arguments, **variables)
    return Answer(done.returncode, done.stdout, done.stderr)


def tree(folder: Path) -> dict[str, tuple[Any, ...]]:
    """All that can be seen of a folder: names, kinds, times, contents, targets of links."""
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mode,
            path.lstat().st_mtime_ns,
            path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else None,
        )
        for path in [folder, *folder.rglob("*")]
    }


def without_last_stage(run: Path) -> None:
    """Make a finished run one that has its last stage still to do."""
    (last,) = (run / "stages").glob("*-evaluate-2-*")
    shutil.rmtree(last)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that did its first stage. Tests leave it as it is."""
    folder = tmp_path_factory.mktemp("begun")
    write_recipe(folder / "mini.yaml", mini())
    done = run_spa(folder, "run", "mini.yaml", "--until", "data")
    assert done.returncode == 0, done.stderr
    return folder


# --- moved, copied, renamed, linked to ---


def test_a_half_finished_copy_beside_the_original_under_another_name_leaves_the_original_as_it_is(
    home: Path, tmp_path: Path, spa_here: Any
) -> None:
    original = Path(shutil.copytree(home / "runs" / "mini", tmp_path / "runs" / "mini", symlinks=True))
    copy = Path(shutil.copytree(original, tmp_path / "runs" / "copy", symlinks=True))
    without_last_stage(copy)
    before = tree(original)
    listed = spa_here("status").out
    assert f"{STAGES}/{STAGES}" in listed
    assert f"{STAGES - 1}/{STAGES}" in listed
    resumed = answer(tmp_path, "resume", "copy")
    assert resumed.code == 0, resumed.err
    assert resumed.out.count("done before") == STAGES
    assert (copy / "final").resolve().is_relative_to(copy)
    assert spa_here("report", "copy").code == 0
    assert "<title>copy" in (copy / "report.html").read_text()
    assert outputs(tmp_path, "copy") == outputs(tmp_path, "mini")
    assert tree(original) == before


def test_a_renamed_run_goes_on_under_its_new_name(begun: Path, tmp_path: Path, spa_here: Any) -> None:
    shutil.copytree(begun / "runs", tmp_path / "runs")
    (tmp_path / "runs" / "mini").rename(tmp_path / "runs" / "renamed")
    assert "renamed" in spa_here("status").out
    resumed = answer(tmp_path, "resume", "--until", "base")  # the newest of one's own
    assert resumed.code == 0, resumed.err
    assert resumed.out.startswith("mini in runs/renamed, 1 of 16 stages done before")
    assert [path.name for path in (tmp_path / "runs").iterdir() if path.is_dir()] == ["renamed"]
    assert set(attempts(tmp_path, "renamed").values()) == {1}


@pytest.mark.parametrize("linked", ["run", "runs", "above"])
def test_a_run_that_is_linked_to_from_elsewhere_goes_on_where_it_is(
    begun: Path, tmp_path: Path, spa_here: Any, linked: str
) -> None:
    shutil.copytree(begun, tmp_path / "disk")
    targets = {
        "run": tmp_path / "disk" / "runs" / "mini",
        "runs": tmp_path / "disk" / "runs",
        "above": tmp_path / "disk",
    }
    links = {"run": tmp_path / "runs" / "mini", "runs": tmp_path / "runs", "above": tmp_path / "link"}
    links[linked].parent.mkdir(exist_ok=True)
    links[linked].symlink_to(targets[linked])
    runs_dir = tmp_path / "link" / "runs" if linked == "above" else tmp_path / "runs"
    assert f"1/{STAGES}" in spa_here("status", "--runs-dir", runs_dir).out
    resumed = answer(tmp_path, "resume", "mini", "--runs-dir", runs_dir, "--until", "base")
    assert resumed.code == 0, resumed.err
    assert links[linked].is_symlink()
    assert f"2/{STAGES}" in spa_here("status", "--runs-dir", tmp_path / "disk" / "runs").out


# --- odd paths ---

ODD = {
    "spaces": " two  spaces ",
    "umlaut": "M\u00fcller \u6f22\u5b57",
    "newline": "two\nlines",
    "quotes": 'it\'s "quoted" `so` $HOME',
    "long": "x" * 200,
    "dash": "-x",
    "pattern": "[0-9]*?{a,b}",
    "markup": "[red]%s{}\\n",
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_a_run_under_an_odd_path_is_shown_reported_and_resumed(
    home: Path, begun: Path, tmp_path: Path, spa_here: Any, odd: str
) -> None:
    runs = tmp_path / odd / "runs"
    whole, half = (tmp_path / odd / folder / odd for folder in ("whole", "runs"))
    shutil.copytree(home / "runs" / "mini", whole, symlinks=True)
    shutil.copytree(begun / "runs" / "mini", half)
    for run, done in ((whole, STAGES), (half, 1)):
        listed = spa_here("status", "--runs-dir", run.parent)
        assert listed.code == 0, listed.err
        assert f" {done}/{STAGES} " in listed.out
        shown = spa_here("status", run)
        assert shown.out.count(" done ") == done, shown.err
        reported = spa_here("report", run)
        assert reported.code == 0, reported.err
        assert (run / "report.html").is_file()
    resumed = answer(tmp_path / odd, "resume", "--until", "base", "--", odd)
    assert resumed.code == 0, resumed.err
    assert set(attempts(runs.parent, odd).values()) == {1}
    assert f" 2/{STAGES} " in spa_here("status", "--runs-dir", runs).out


def test_the_command_that_goes_on_is_told_as_a_shell_reads_it(begun: Path, tmp_path: Path, spa_here: Any) -> None:
    for name in ("two words", "-x"):
        shutil.copytree(begun / "runs" / "mini", tmp_path / name)
    assert "`spa resume 'two words'` continues with base" in spa_here("status", "--runs-dir", ".", "two words").out
    assert "`spa resume ./-x` continues with base" in spa_here("status", "--runs-dir", ".", "--", "-x").out
    assert spa_here("status", "./-x").code == 0


# --- a name that is not UTF-8 ---

LATIN = os.fsdecode(b"caf\xe9")


@LINUX
@pytest.mark.parametrize("where", ["above", "itself"])
def test_a_run_in_a_folder_whose_name_is_not_utf8_is_refused_before_anything_is_made(
    tmp_path: Path, spa_here: Any, where: str
) -> None:
    write_recipe(tmp_path / "mini.yaml", mini())
    run = tmp_path / LATIN / "mini" if where == "above" else tmp_path / LATIN
    line = one_error(spa_here("run", "mini.yaml", "--until", "data", "--run-dir", run), 2)
    assert "caf\\xe9" in line
    assert "the path is not UTF-8" in line
    assert "rename the folder" in line
    assert not (tmp_path / LATIN).exists()


@LINUX
def test_the_current_folder_too_may_have_such_a_name(tmp_path: Path) -> None:
    (tmp_path / LATIN).mkdir()
    write_recipe(tmp_path / LATIN / "mini.yaml", mini())
    assert "not UTF-8" in one_error(answer(tmp_path / LATIN, "run", "mini.yaml"), 2)
    assert [path.name for path in (tmp_path / LATIN).iterdir()] == ["mini.yaml"]


@LINUX
def test_answers_in_such_a_folder_are_refused_too(tmp_path: Path, spa_here: Any) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    (tmp_path / LATIN).mkdir()
    models = ("--policy", "sandbox", "--reference", "sandbox")
    out = tmp_path / LATIN / "out.jsonl"
    line = one_error(spa_here("judge", *models, "--pairs", "pairs.jsonl", "--out", out), 2)
    assert "not UTF-8" in line
    assert list((tmp_path / LATIN).iterdir()) == []


@LINUX
def test_a_run_with_such_a_name_is_shown_and_stops_no_other(begun: Path, tmp_path: Path, spa_here: Any) -> None:
    """As after a move; its stages are taken over, and noted by a name that can be written."""
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    (tmp_path / "runs" / "mini").rename(tmp_path / "runs" / LATIN)
    listed = spa_here("status")
    assert listed.code == 0
    assert f"caf\\xe9  1/{STAGES}" in listed.out
    assert "not UTF-8" in one_error(spa_here("resume", LATIN), 2)
    other = answer(tmp_path, "run", "mini.yaml", "--until", "data")
    assert other.code == 0, other.err
    assert "caf\\xe9" in other.out
    assert attempts(tmp_path) == {}


# --- clocks that jump ---


@pytest.mark.parametrize("year", [1970, 2100])
def test_a_clock_that_jumps_changes_nothing_that_is_done(begun: Path, tmp_path: Path, year: int) -> None:
    """Times of the manifest, the events, the recipe and the lock, each alone of another century."""
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    seconds = (year - 1970) * 365.25 * 86400 + 1
    run = tmp_path / "runs" / "mini"
    jumped = [tmp_path / "mini.yaml", run, *(p for p in run.rglob("*") if p.is_file())]
    assert {"manifest.json", "events.jsonl", "recipe.yaml", "plan.json", ".lock"} <= {path.name for path in jumped}
    for path in jumped:
        os.utime(path, (seconds, seconds))
    before = outputs(tmp_path)
    assert f"1/{STAGES}" in answer(tmp_path, "status").out
    again = answer(tmp_path, "run", "mini.yaml", "--until", "base")
    assert again.code == 0, again.err
    assert attempts(tmp_path) == {stage_dir(tmp_path, name).name: 1 for name in ("data", "base")}
    assert {name: content for name, content in outputs(tmp_path).items() if name in before} == before


# --- several at once ---


@LINUX
def test_of_twenty_simultaneous_starts_one_holds_the_run_and_the_others_say_so(tmp_path: Path, begun: Path) -> None:
    write_recipe(tmp_path / "mini.yaml", mini())
    twenty = [
        start(tmp_path, "run", "mini.yaml", "--until", "data", **STOPPED_WHILE_WRITING) for _ in range(20)
    ]  # fmt: skip
    wait_for(lambda: stopped_in(tmp_path), every=0.1)
    (holder,) = {int((tmp_path / "runs" / "mini" / ".holder").read_text().split()[-1])}
    others = [command for command in twenty if command.pid != holder]
    assert len(others) == 19
    for command in others:
        line = one_error(Answer(command.wait(), command.out(), command.err()), 4)
        assert f"the run is in use by {os.uname().nodename} pid {holder}" in line
    (stopped,) = stopped_in(tmp_path)
    os.kill(stopped, signal.SIGCONT)
    (first,) = (command for command in twenty if command.pid == holder)
    assert first.wait() == 0, first.err()
    assert outputs(tmp_path) == outputs(begun)
    assert list(attempts(tmp_path).values()) == [1]
    assert not [path for path in (tmp_path / "runs").rglob("*") if path.name.endswith(".tmp")]


@LINUX
def test_two_runs_in_one_folder_at_the_same_time_share_nothing_half_written(tmp_path: Path, begun: Path) -> None:
    """The first is stopped in its data stage; the second does that stage itself; a third takes it over."""
    write_recipe(tmp_path / "mini.yaml", mini())
    until = ("--until", "data", "--run-dir")
    first = start(tmp_path, "run", "mini.yaml", *until, "runs/first", **STOPPED_WHILE_WRITING)
    wait_for(lambda: stopped_in(tmp_path), every=0.1)
    second = answer(tmp_path, "run", "mini.yaml", *until, "runs/second")
    assert second.code == 0, second.err
    assert "first" not in second.out
    third = answer(tmp_path, "run", "mini.yaml", *until, "runs/third")
    assert third.code == 0, third.err
    assert attempts(tmp_path, "third") == {}
    (stopped,) = stopped_in(tmp_path)
    os.kill(stopped, signal.SIGCONT)
    assert first.wait() == 0, first.err()
    assert list(attempts(tmp_path, "first").values()) == [1]
    for name in ("first", "second", "third"):
        assert outputs(tmp_path, name) == outputs(begun)


def test_a_second_person_on_the_same_folder_of_runs_is_told_what_is_whose(begun: Path, tmp_path: Path) -> None:
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    before = tree(tmp_path / "runs" / "mini")
    second = {"XDG_STATE_HOME": str(tmp_path / "state")}
    line = one_error(answer(tmp_path, "resume", **second), 2)
    assert "no unfinished run in runs was started by you" in line
    assert line.endswith("name it: mini")
    own = answer(tmp_path, "run", "mini.yaml", "--until", "data", "--run-dir", "runs/second", **second)
    assert own.code == 0, own.err
    assert "run mini, which you did not start, has 1 of the stages: they are done again" in own.out
    assert list(attempts(tmp_path, "second").values()) == [1]
    assert outputs(tmp_path, "second") == outputs(tmp_path)
    assert tree(tmp_path / "runs" / "mini") == before
    named = answer(tmp_path, "resume", "mini", "--until", "data", **second)
    assert named.code == 0, named.err
    assert answer(tmp_path, "resume", "--until", "data", **second).out.startswith("mini in runs/second, ")
    assert answer(tmp_path, "resume", "--until", "data").out.startswith("mini in runs/mini, ")
