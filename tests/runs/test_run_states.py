"""The states in which a run can be found, each with its documented answer: damaged, full, moved, read-only, crashed."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from spa_recipes.state import atomic
from spa_recipes.state.stagedir import StageDir
from tests.kit.cli import imported_by, run_python, run_spa, umask
from tests.kit.recipes import KEEPING, merged, mini, write_recipe
from tests.kit.runs import attempts, outputs, stage_dir

STAGES = 16
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="uses system calls of Linux")


@pytest.fixture
def copy(home: Path, tmp_path: Path) -> Path:
    """A folder with a copy of the finished run, far from it."""
    shutil.copytree(home / "runs" / "mini", tmp_path / "runs" / "mini", symlinks=True)
    shutil.copy(home / "mini.yaml", tmp_path)
    return tmp_path


def unfinish(folder: Path, stage: str) -> Path:
    """Put a stage back to the moment before its commit."""
    path = stage_dir(folder, stage)
    (path / "manifest.json").unlink()
    shutil.rmtree(path / "output")
    return path


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "runs" / "mini" / "events.jsonl").read_text().splitlines()]


def flip(path: Path) -> bytes:
    """Change one byte in the middle of a file; returns the damaged content."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return bytes(content)


def one_line(done: "subprocess.CompletedProcess[str]") -> str:
    """Standard error, which is one line."""
    (line,) = done.stderr.strip().splitlines()
    return line


# --- finished ---


def test_a_finished_run_answers_without_any_stage(home: Path) -> None:
    before = attempts(home)
    with umask(0o002):
        done, imported = imported_by(home, "resume", "mini")
    assert done.returncode == 0, done.stderr
    assert imported == []
    assert done.stdout.count("done before") == STAGES + 1
    assert attempts(home) == before


def test_files_have_the_mode_of_the_umask(finished: Path) -> None:
    """002 in the fixture: what one of a group began, another one can go on with."""
    assert modes(finished / "runs") == {("file", 0o664), ("folder", 0o775)}


def modes(folder: Path) -> set[tuple[str, int]]:
    return {
        ("folder" if path.is_dir() else "file", stat.S_IMODE(path.stat().st_mode))
        for path in [folder, *folder.rglob("*")]
        if not path.is_symlink()
    }


def test_a_run_does_not_know_where_it_is(finished: Path) -> None:
    """No file of it holds its place, and the links to the model are relative."""
    place = str(finished).encode()
    assert [
        path for path in (finished / "runs" / "mini").rglob("*") if path.is_file() and place in path.read_bytes()
    ] == []
    links = [path for path in (finished / "runs" / "mini").rglob("*") if path.is_symlink()]
    assert links
    assert not any(path.readlink().is_absolute() for path in links)


@pytest.mark.parametrize("year", [1980, 2090])
def test_wrong_clocks_change_nothing(copy: Path, year: int) -> None:
    for path in (copy / "runs").rglob("manifest.json"):
        folder = StageDir(path.parent)
        manifest = folder.manifest()
        assert manifest is not None
        atomic.write_json(path, replace(manifest, finished_at=f"{year}-01-01T00:00:00+00:00").to_json())
    seconds = (year - 1970) * 365.25 * 86400
    for path in (copy / "runs").rglob("*"):
        os.utime(path, (seconds, seconds), follow_symlinks=False)
    before = attempts(copy)
    done = run_spa(copy, "resume", "mini")
    assert done.returncode == 0, done.stderr
    assert attempts(copy) == before
    assert f"{STAGES}/{STAGES}" in run_spa(copy, "status").stdout


# --- damaged ---


def test_what_was_damaged_is_found_kept_said_and_made_again(home: Path, copy: Path) -> None:
    """Shards, checkpoints, a manifest and an output: all in one run, which was moved besides."""
    generate, score, sft, refine = (
        unfinish(copy, name) for name in ("generate-1", "score-2-reference", "sft", "refine-1")
    )
    altered = generate / "work" / "shards" / "completions" / "00000000-00000016.parquet"
    table = pq.read_table(altered)
    pq.write_table(table.take(list(reversed(range(table.num_rows)))), altered)  # readable, with the right count
    (cut,) = (score / "work" / "shards" / "logps").glob("*.parquet")
    cut.write_bytes(cut.read_bytes()[:-9])
    optimizer = flip(sft / "work" / "checkpoints" / "checkpoint-12" / "optimizer.pt")
    (refine / "work" / "checkpoints" / "checkpoint-1" / "spa_checkpoint.json").unlink()
    judged = flip(stage_dir(copy, "judge-2") / "output" / "pairs.jsonl")
    manifest = stage_dir(copy, "judge-1") / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"tokens": 0', '"tokens": 1'))
    (copy / "runs").rename(copy / "moved")
    done = run_spa(copy, "resume", copy / "moved" / "mini")
    (copy / "moved").rename(copy / "runs")
    assert done.returncode == 0, done.stderr
    assert outputs(copy) == outputs(home)

    said = [event["text"] for event in events(copy) if event["event"] == "notice"]
    assert {event["stage"] for event in events(copy) if event["event"] == "stage damaged"} == {"judge-1", "judge-2"}
    for words in (
        "shard completions/00000000-00000016.parquet was altered or cut off",
        f"shard logps/{cut.name} was altered or cut off",
        "checkpoint-12 was altered or cut off: kept as checkpoint-12.damaged-1, going on from checkpoint-8",
        "checkpoint-1 was not finished: deleted, training starts again",
    ):
        (line,) = [text for text in said if words in text]
        assert line in done.stdout
    logs = "".join(path.read_text() for path in (copy / "runs" / "mini").rglob("worker.log"))
    assert all(text in logs for text in said)
    assert "manifest.json was altered" in done.stdout
    assert "output/pairs.jsonl was altered" in done.stdout
    assert "went on from step 8" in done.stdout

    assert (sft / "work" / "damaged" / "checkpoint-12.damaged-1" / "optimizer.pt").read_bytes() == optimizer
    assert (generate / "work" / "damaged" / f"{altered.name}.damaged-1").is_file()
    assert (Path(f"{stage_dir(copy, 'judge-2')}.damaged-1") / "output" / "pairs.jsonl").read_bytes() == judged
    again = {name for name, count in attempts(copy).items() if count > 1}
    assert again == {
        generate.name,
        score.name,
        sft.name,
        refine.name,
    }  # the others were reused, or set aside as a whole
    assert attempts(copy)[stage_dir(copy, "judge-1").name] == 1


# --- moved and copied ---


def test_a_copy_beside_the_original_goes_on_by_itself(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "runs" / "mini", tmp_path / "archive" / "other-name", symlinks=True)
    shutil.rmtree(next((tmp_path / "archive").glob("other-name/stages/*-evaluate-2-*")))
    status = run_spa(tmp_path, "status", "other-name", "--runs-dir", "archive")
    assert status.stdout.count(" done ") == STAGES - 1
    done = run_spa(tmp_path, "resume", "other-name", "--runs-dir", "archive")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done before") == STAGES  # the heading says it too
    final = tmp_path / "archive" / "other-name" / "final"
    assert final.resolve().is_relative_to(tmp_path)
    assert (final / "model.safetensors").is_file()


def test_relative_paths_are_those_of_the_current_folder(tmp_path: Path) -> None:
    from spa_recipes.data.rows import write_jsonl
    from spa_recipes.sandbox.model import build_model
    from spa_recipes.sandbox.rows import preference_rows

    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    write_jsonl(here / "mine.jsonl", preference_rows(400, seed=0))
    build_model(here / "base", seed=0)
    recipe = mini(model={"model_name_or_path": "base"}, sft=None)
    recipe["data"]["pairs"] = {"source": "mine.jsonl"}
    write_recipe(here / "mini.yaml", merged(recipe, {"evaluation": {"reward": "none"}}))
    assert run_spa(here, "run", "mini.yaml", "--until", "data").returncode == 0
    assert run_spa(here, "resume", "mini", "--until", "data").returncode == 0
    away = run_spa(there, "resume", here / "runs" / "mini")
    assert away.returncode == 3
    assert "mine.jsonl" in one_line(away)
    assert f"relative to {there}" in one_line(away)
    shutil.copy(here / "mine.jsonl", there)
    away = run_spa(there, "resume", here / "runs" / "mini")
    assert away.returncode == 3
    assert one_line(away).startswith("error: model.model_name_or_path: base: the model is neither on this disk nor")


# --- read-only ---


WITHOUT_ROOT_POWERS = """
import ctypes, sys
from spa_recipes.cli.app import main
set_capabilities = ctypes.CDLL(None).capset
none = (ctypes.c_uint32 * 6)()
assert set_capabilities((ctypes.c_uint32 * 2)(0x20080522, 0), none) == 0
sys.argv[0] = "spa"
main()
"""
"""`spa` for which the modes of files count even if root calls it."""


def run_bound(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """The command line as a user whom the modes of files bind."""
    return run_python(folder, WITHOUT_ROOT_POWERS, *arguments)


@LINUX
@pytest.mark.parametrize("whole", [True, False])
def test_a_folder_that_nobody_may_write(copy: Path, whole: bool) -> None:
    if not whole:
        unfinish(copy, "evaluate-2")
    paths = [copy / "runs", *(path for path in (copy / "runs").rglob("*") if not path.is_symlink())]
    for path in paths:
        path.chmod(path.stat().st_mode & ~0o222)
    try:
        assert run_bound(copy, "status").returncode == 0
        assert run_bound(copy, "status", "mini").stdout.count(" done ") == STAGES - (not whole)
        assert run_bound(copy, "plan", "mini.yaml").returncode == 0
        for command in (["run", "mini.yaml"], ["resume", "mini"]):
            done = run_bound(copy, *command)
            if whole:
                assert done.returncode == 0, done.stderr
                assert "judge accuracy" in done.stdout
            else:
                assert done.returncode == 3
                assert "evaluate-2 is still to be done" in one_line(done)
    finally:
        for path in paths:
            path.chmod(path.stat().st_mode | 0o200)


# --- a full disk ---


def test_too_small_a_disk_is_told_before_a_stage(tmp_path: Path) -> None:
    write_recipe(tmp_path / "mini.yaml", mini(model={"num_parameters": 10**15}))
    done = run_spa(tmp_path, "run", "mini.yaml", "--until", "base")  # no training, which would not fit the memory
    assert done.returncode == 75
    assert re.search(r"base: .*needs up to 4000 TB on the disk and \S+ \S+ are free", one_line(done))
    assert not attempts(tmp_path)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """A file system of some size."""
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("may not mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@LINUX
@pytest.mark.parametrize("size", ["7m", pytest.param("600k", marks=pytest.mark.long)])
def test_a_disk_that_fills_up_in_a_stage(home: Path, tmp_path: Path, size: str) -> None:
    """In writing a second checkpoint, or the base model; then there is room."""
    small = tmp_path / "small"
    with small_disk(small, size):
        # The estimate must not stop it before; that a model is smaller than it says is possible, if unlikely.
        write_recipe(small / "mini.yaml", merged(KEEPING, {"model": {"num_parameters": 1}}))
        with umask(0o077):
            full = run_spa(small, "run", "mini.yaml", "--until", "sft")
        assert full.returncode == 75
        assert re.search(r"the disk is full: \S+ could not be written, \S+ \S+ are free", one_line(full))
        assert "make room" in one_line(full)
        whole = {path.parent.name for path in small.rglob("spa_checkpoint.json")}
        assert {path.name for path in small.rglob("checkpoint-*")} == whole
        assert not list(small.rglob("*.tmp"))
        subprocess.run(["mount", "-o", "remount,size=100m", small], check=True)
        with umask(0o077):
            done = run_spa(small, "resume", "mini", "--until", "sft")
        assert done.returncode == 0, done.stderr
        assert ("went on from step" in done.stdout) == bool(whole)
        assert modes(small / "runs") == {("file", 0o600), ("folder", 0o700)}
        mine = outputs(small)
        assert mine == {name: content for name, content in outputs(home).items() if name in mine}
        assert any("sft" in name for name in mine)
