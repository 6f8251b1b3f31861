"""Folders of somebody else are not written into, replaced or emptied; the marker says which are this tool's."""

from collections.abc import Callable
from pathlib import Path

import pytest

from spa_recipes.errors import RecipeError
from spa_recipes.run import final
from spa_recipes.run.rundir import RunDir
from spa_recipes.state import marker
from spa_recipes.state.marker import MARKER, Kind
from tests.kit.finished_runs import make_run, show_final
from tests.kit.plans import plan_of

Make = Callable[[Path], object]


def contents(folder: Path) -> dict[str, bytes | str]:
    """All that is in a folder, by name; links with where they lead."""
    return {
        str(path.relative_to(folder)): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def somebodys_project(folder: Path) -> None:
    (folder / "final").mkdir(parents=True)
    (folder / "final" / "thesis.pdf").write_text("years")
    (folder / "recipe.yaml").write_text("flour: 500 g\n")


def files(folder: Path, **texts: str) -> None:
    folder.mkdir()
    for name, text in texts.items():
        (folder / name).write_text(text)


def a_link_for_a_marker(folder: Path) -> None:
    files(folder, notes="x")
    (folder.parent / "word").write_text("run\n")
    (folder / MARKER).symlink_to("../word")


FOREIGN: dict[str, Make] = {
    "files": somebodys_project,
    "only a hidden file": lambda folder: files(folder, **{".git": "x"}),
    "only a folder": lambda folder: (folder / "stages").mkdir(parents=True),
    "a plan without a run": lambda folder: files(folder, **{"plan.json": "[]", "recipe.yaml": "x"}),
    "a marker of somebody else": lambda folder: files(folder, **{MARKER: "mine", "x": "x"}),
    "a link in the marker's place": a_link_for_a_marker,
}


@pytest.mark.parametrize("kind", ["run", "job", "results"])
@pytest.mark.parametrize("make", FOREIGN.values(), ids=FOREIGN)
def test_a_folder_with_something_else_in_it_is_refused_and_stays(make: Make, kind: Kind, tmp_path: Path) -> None:
    folder = tmp_path / "proj"
    make(folder)
    before = contents(tmp_path)
    for refused in (marker.refuse_foreign, marker.claim, marker.remove):
        with pytest.raises(RecipeError, match=r"nothing in it was changed; .*(choose|move)"):
            refused(folder, kind)
        assert contents(tmp_path) == before


def test_a_new_and_an_empty_folder_are_taken_and_marked(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new"):
        marker.claim(tmp_path / name, "run")
        (tmp_path / name / "x").touch()
        marker.claim(tmp_path / name, "run")
        assert marker.kind_of(tmp_path / name) == "run"


def test_a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    """`spa judge --out runs/x` must not take the run `x.spa`, which it would delete at the end."""
    marker.claim(tmp_path / "x.spa", "run")
    with pytest.raises(RecipeError, match="holds a run, and not work in progress of spa judge"):
        marker.claim(tmp_path / "x.spa", "job")


def test_a_link_is_not_deleted_as_work_in_progress(tmp_path: Path) -> None:
    marker.claim(tmp_path / "real", "job")
    (tmp_path / "out.spa").symlink_to("real")
    with pytest.raises(RecipeError, match="not a folder"):
        marker.remove(tmp_path / "out.spa", "job")
    assert (tmp_path / "real" / MARKER).exists()


def test_a_deletion_that_was_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker.claim(tmp_path / "out.spa", "job")
    (tmp_path / "out.spa" / "stages").mkdir()
    monkeypatch.setattr(Path, "rmdir", lambda path: (_ for _ in ()).throw(OSError("killed")))
    with pytest.raises(OSError, match="killed"):
        marker.remove(tmp_path / "out.spa", "job")
    monkeypatch.undo()
    marker.claim(tmp_path / "out.spa", "job")
    marker.remove(tmp_path / "out.spa", "job")
    assert not (tmp_path / "out.spa").exists()


@pytest.mark.parametrize("left", [[".lock"], [".lock", ".holder", ".digests.json"], [f".{MARKER}.123.tmp"], [MARKER]])
def test_a_start_that_was_killed_leaves_a_folder_that_can_be_taken(left: list[str], tmp_path: Path) -> None:
    for name in left:
        (tmp_path / name).touch()
    with RunDir(tmp_path).locked():
        assert marker.kind_of(tmp_path) == "run"


@pytest.mark.parametrize("missing", ["", "recipe.yaml", "plan.json", "resolved.json", "events.jsonl"])
def test_a_run_from_before_the_marker_is_known_and_gets_one(missing: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "mini", plan_of())
    (run.path / MARKER).unlink()
    if missing:
        (run.path / missing).unlink()
    with run.locked():
        pass
    assert (run.path / MARKER).read_text() == "run\n"


def test_a_run_from_before_the_marker_is_known_where_no_marker_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "mini", plan_of())
    (run.path / MARKER).unlink()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(marker, "mark", full)
    marker.claim(run.path, "run")
    with pytest.raises(RecipeError):
        marker.claim(run.path, "job")


# --- final


def test_what_a_person_put_into_final_stays_when_the_record_is_gone(tmp_path: Path) -> None:
    plan = plan_of()
    run = make_run(tmp_path / "mini", plan)
    (run.final / final.RECORD).unlink()
    (run.final / "thesis.pdf").write_text("years")
    (run.final / "README.md").write_text("my own words")
    (run.final / "notes").symlink_to(tmp_path)
    show_final(run, plan)
    assert (run.final / "thesis.pdf").read_text() == "years"
    assert "my own words" in [path.read_text() for path in run.final.glob("README.md*")]
    assert (run.final / "notes").resolve() == tmp_path


def test_a_file_in_the_place_of_final_is_kept(tmp_path: Path) -> None:
    plan = plan_of()
    run = make_run(tmp_path / "mini", plan)
    run.final.rename(tmp_path / "away")
    run.final.write_text("years")
    show_final(run, plan)
    assert run.final.is_dir()
    assert [path.read_text() for path in run.path.glob("final.*")] == ["years"]
