"""Atomic writes, digests, and the commit of a stage."""

import json
import os
from pathlib import Path

import pytest

from spa_recipes.state import atomic
from spa_recipes.state.digests import DigestMemo
from spa_recipes.state.stagedir import MANIFEST, StageDir, adopt
from tests.kit.state import FIELDS


def committed(path: Path, content: str = "rows\n") -> StageDir:
    stage = StageDir(path)
    (stage.draft(1) / "model").mkdir(parents=True)
    (stage.draft(1) / "pairs.jsonl").write_text(content)
    (stage.draft(1) / "model" / "weights").write_text("weights")
    stage.commit(FIELDS)
    return stage


def test_a_failed_write_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "file"
    atomic.write_text(target, "old")

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        atomic.write_text(target, "new")
    assert target.read_text() == "old"


def test_commit_makes_a_stage_done(tmp_path: Path) -> None:
    stage = committed(tmp_path / "stage")
    assert stage.is_done(FIELDS["key"])
    assert not stage.is_done("another key")
    assert stage.problems(deep=True) == []
    assert not stage.draft(1).exists()
    manifest = stage.manifest()
    assert manifest is not None
    assert sorted(manifest.files) == ["model/weights", "pairs.jsonl"]


def test_output_without_manifest_is_not_done(tmp_path: Path) -> None:
    stage = committed(tmp_path / "stage")
    (stage.path / MANIFEST).unlink()
    assert not stage.is_done(FIELDS["key"])


@pytest.mark.parametrize("damage", ["missing", "truncated", "altered", "manifest"])
def test_damage_is_found(tmp_path: Path, damage: str) -> None:
    stage = committed(tmp_path / "stage")
    file = stage.output / "pairs.jsonl"
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        file.write_text("ro")
    elif damage == "altered":
        file.write_text("ROWS\n")
    else:
        (stage.path / MANIFEST).write_text('{"id": "judge')
    problems = stage.problems(deep=True)
    assert len(problems) == 1
    assert ("pairs.jsonl" in problems[0]) == (damage != "manifest")
    aside = stage.set_aside()
    assert aside.name == "stage.damaged-1"
    assert not stage.path.exists()


def test_attempts_are_numbered_and_kept(tmp_path: Path) -> None:
    stage = StageDir(tmp_path / "stage")
    assert [stage.new_attempt().name for _ in range(11)] == [str(n) for n in range(1, 12)]
    assert [path.name for path in stage.attempts()][-2:] == ["10", "11"]


def test_what_lost_workers_had_on_the_way_is_a_draft(tmp_path: Path) -> None:
    """So the next process that commits deletes it, or `spa gc`: it may be a whole model."""
    lost = tmp_path / "attempts" / "1" / "draft-pool-0"
    for folder in (lost / "merged", tmp_path / "output.draft-2", tmp_path / "work"):
        folder.mkdir(parents=True)
    (tmp_path / "attempts" / "1" / "draft-pool-1").touch()
    assert StageDir(tmp_path).drafts() == [lost, tmp_path / "output.draft-2"]


def test_adopting_shares_the_files_and_says_from_where(tmp_path: Path) -> None:
    source, target = committed(tmp_path / "a" / "stage"), StageDir(tmp_path / "b" / "stage")
    adopt(source, target, "first-run")
    assert target.is_done(FIELDS["key"])
    assert target.problems(deep=True) == []
    manifest = target.manifest()
    assert manifest is not None
    assert manifest.reused_from == "first-run"
    assert (target.output / "pairs.jsonl").stat().st_ino == (source.output / "pairs.jsonl").stat().st_ino


def test_the_digest_memo_sees_changes_and_forgets_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "a").write_text("1")
    memo = DigestMemo(tmp_path / "memo.json")
    first = memo.of(folder)
    memo.save()
    assert len(json.loads((tmp_path / "memo.json").read_text())) == 1
    assert DigestMemo(tmp_path / "memo.json").of(folder) == first
    (folder / "a").rename(folder / "b")
    renamed = DigestMemo(tmp_path / "memo.json").of(folder)
    assert renamed != first
    (folder / ".hidden").write_text("not content")
    assert DigestMemo(tmp_path / "memo.json").of(folder) == renamed


def test_a_memo_is_not_written_where_no_run_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    memo = DigestMemo(tmp_path / "runs" / "memo.json")
    memo.of(tmp_path / "file")
    memo.save()
    assert not (tmp_path / "runs").exists()
