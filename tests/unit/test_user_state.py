"""The user's own state: which runs are theirs, and what they trust."""

import shutil
from pathlib import Path

import pytest

from spa_recipes.state import user_state


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def run_in(tmp_path: Path) -> Path:
    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    user_state.note_run(run)
    return run


def test_a_run_stays_ours_when_it_is_moved_or_copied(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    assert user_state.started_here(run)
    shutil.copytree(run, tmp_path / "copy")
    run.rename(tmp_path / "moved")
    assert user_state.started_here(tmp_path / "copy")
    assert user_state.started_here(tmp_path / "moved")


@pytest.mark.parametrize("word", ["", "0" * 64, "x" * 10_000, "\u00e4"])
def test_a_run_with_a_made_up_mark_is_not_ours(tmp_path: Path, word: str) -> None:
    run_in(tmp_path)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    assert not user_state.started_here(foreign)
    (foreign / user_state.MARK).write_text(word)
    assert not user_state.started_here(foreign)


def test_what_the_list_of_runs_says_makes_no_mark(tmp_path: Path) -> None:
    run_in(tmp_path)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    for digest in (user_state.state_folder() / "runs").read_text().split():
        (foreign / user_state.MARK).write_text(digest)
        assert not user_state.started_here(foreign)


def test_a_link_to_the_mark_of_a_run_is_no_mark(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / user_state.MARK).symlink_to(run / user_state.MARK)
    assert not user_state.started_here(foreign)


def test_a_line_is_written_once_and_is_forgotten_when_it_is_deleted() -> None:
    for _ in range(2):
        user_state.remember("trusted", "a" * 64, "recipe\nwith two lines")
    user_state.remember("trusted", "b" * 64, "other")
    path = user_state.state_folder() / "trusted"
    assert path.read_text().splitlines() == [f"{'a' * 64}  recipe with two lines", f"{'b' * 64}  other"]
    assert user_state.knows("trusted", "a" * 64)
    assert not user_state.knows("trusted", "a" * 63)
    assert not user_state.knows("runs", "a" * 64)
    path.write_text("")
    assert not user_state.knows("trusted", "a" * 64)


@pytest.mark.parametrize("relative", ["", "state"])
def test_a_state_home_that_is_no_absolute_path_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relative: str
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", relative)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert user_state.state_folder() == tmp_path / "home" / ".local" / "state" / "spa-recipes"


def test_where_nothing_can_be_written_a_run_is_not_ours_and_nothing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    assert not user_state.started_here(run_in(tmp_path))
