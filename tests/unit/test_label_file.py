"""The labels file: rows that are whole or absent, and files of another kind."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from spa_recipes.errors import RecipeError, SpaError
from spa_recipes.label.file import opened
from tests.kit.labelling import session, source_of


def filled(path: Path, count: int = 3) -> bytes:
    """A file with so many labels."""
    with session(path, source_of(10)) as one:
        for number in range(count):
            one.choose(number, "left")
    return path.read_bytes()


@pytest.mark.parametrize("rows", [0, 3])
@pytest.mark.parametrize("cut", [1, 20, 300])
def test_a_line_that_a_killed_process_left_is_removed(tmp_path: Path, cut: int, rows: int) -> None:
    lines = filled(tmp_path / "l.jsonl").splitlines(keepends=True)
    content = b"".join(lines[:rows])
    (tmp_path / "l.jsonl").write_bytes(content + lines[0][:cut])
    with opened(tmp_path / "l.jsonl") as file:
        assert file.cut_off
        assert len(file.rows) == rows
    assert (tmp_path / "l.jsonl").read_bytes() == content


def test_a_whole_last_line_whose_end_an_editor_left_out_is_kept(tmp_path: Path) -> None:
    content = filled(tmp_path / "l.jsonl")
    (tmp_path / "l.jsonl").write_bytes(content.rstrip(b"\n"))
    with opened(tmp_path / "l.jsonl") as file:
        assert not file.cut_off
        file.append(file.rows[0])
    assert (tmp_path / "l.jsonl").read_bytes() == content + content.splitlines(keepends=True)[0]


@pytest.mark.parametrize(
    "content", [b'{"prompt": "p", "chosen": "a", "rejected": "b"}\n', b"# notes\n", b"\x00\xff", b"[1]\n", b'{"a": "']
)
def test_a_file_of_another_kind_stays_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "l.jsonl"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=r"l\.jsonl:1: not a row of `spa label`"), opened(path):
        pass
    assert path.read_bytes() == content


def test_a_strange_line_in_the_middle_is_named(tmp_path: Path) -> None:
    first, *rest = filled(tmp_path / "l.jsonl").splitlines(keepends=True)
    (tmp_path / "l.jsonl").write_bytes(first + b"x\n" + b"".join(rest))
    with pytest.raises(RecipeError, match=r"l\.jsonl:2"), opened(tmp_path / "l.jsonl"):
        pass


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"")
    (tmp_path / "l.jsonl").symlink_to(tmp_path / "other")
    with pytest.raises(SpaError, match=r"l\.jsonl"), opened(tmp_path / "l.jsonl"):
        pass


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "l.jsonl"
    with session(path, source_of(10)) as one:
        one.choose(0, "left")
        content = path.read_bytes()
        real = os.pwrite

        def full(descriptor: int, data: Any, offset: int) -> int:
            if len(data) > 50:
                return real(descriptor, data[:50], offset)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "pwrite", lambda *a: real(a[0], a[1][:50], a[2]) if len(a[1]) > 90 else full(*a))
        with pytest.raises(SpaError, match="make room on the disk"):
            one.choose(1, "left")
        monkeypatch.setattr(os, "pwrite", real)
        assert path.read_bytes() == content
        assert one.current() == 1
        one.choose(1, "right")
    with opened(path) as file:
        assert [row["choice"] for row in file.rows] == ["left", "right"]
