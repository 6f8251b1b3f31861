"""Whole commands on a file system that offers little, and on a disk that fails."""

import json
import re
import sys
from pathlib import Path

import pytest

from spa_recipes.run.final import model_shown
from spa_recipes.run.rundir import RunDir
from tests.injection.campaign import RECIPE
from tests.kit.cli import Spa
from tests.kit.recipes import write_recipe
from tests.kit.refused_calls import Refused, variable

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="commands are forks")

LITTLE = [
    Refused("symlink", "EPERM"),
    Refused("link", "EOPNOTSUPP"),
    Refused("chmod", "EPERM"),
    Refused("fsync", "EINVAL"),
    Refused("flock", "ENOLCK", r"\.lock$"),
]


def test_a_run_is_done_and_taken_over_without_links_modes_fsync_and_flock(tmp_path: Path, spa: Spa) -> None:
    write_recipe(tmp_path / "mini.yaml", RECIPE)
    done = spa("run", "mini.yaml", **variable(*LITTLE))
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if "this file system has" in line]
    assert len(said) == 1
    assert all(words in said[0] for words in ("no symbolic links", "no hard links", "no modes", "no fsync"))
    run = RunDir(tmp_path / "runs" / "mini")
    model = model_shown(run.final)
    assert model.is_relative_to(run.path / "stages")
    names = {path.name for path in model.iterdir()}
    assert all((run.final / name).read_bytes() == (model / name).read_bytes() for name in names)
    assert not any(path.is_symlink() for path in run.path.rglob("*"))
    assert run.holder() is None
    again = spa("run", "mini.yaml", "--run-dir", "runs/other", **variable(*LITTLE))
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("from run mini") == len(json.loads((run.path / "plan.json").read_text()))
    assert spa("status", **variable(*LITTLE)).stdout.count(" done ") == 2


@pytest.mark.parametrize(
    ("refused", "code", "words"),
    [
        (Refused("write", "EIO", r"events\.jsonl"), 75, r"events\.jsonl: Input/output error; .*dmesg"),
        (Refused("write", "EACCES", r"\.lock$"), 3, r"\.lock: Permission denied; choose another --run-dir"),
        (Refused("write", "EROFS", r"\.lock$"), 3, r"\.lock: Read-only file system; choose another --run-dir"),
        (Refused("flock", "EIO", r"\.lock$"), 75, r"runs/mini: Input/output error; .*dmesg"),
        (
            Refused("write", "EDQUOT", r"data-\w+/output.draft-1"),
            75,
            r"data: the disk quota is used up: \S+output.draft",
        ),
        (
            Refused("write", "EFBIG", r"data-\w+/output.draft-1"),
            3,
            r"data: \S+output.draft\S+: File too large; .*ulimit",
        ),
        (
            Refused("open", "EIO", r"attempts/1/spec\.json"),
            75,
            r"data: \S+spec\.json: cannot be read \(Input/output error",
        ),
        (Refused("write", "EACCES", r"worker\.log"), 3, r"worker\.log: Permission denied; change its permissions"),
    ],
)
def test_a_refused_call_is_one_line(tmp_path: Path, spa: Spa, refused: Refused, code: int, words: str) -> None:
    write_recipe(tmp_path / "mini.yaml", RECIPE)
    ended = spa("run", "mini.yaml", "--until", "data", **variable(refused))
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, ended.stderr
    assert re.search(words, errors[0]), errors[0]
    assert ended.returncode == code
    assert "Traceback" not in ended.stderr
    assert "--debug shows where" not in ended.stderr
    assert "Errno" not in errors[0]
    assert spa("run", "mini.yaml", "--until", "data").returncode == 0  # nothing stands in the way of another try


def test_a_folder_whose_name_is_not_utf_8_stops_no_other_run(tmp_path: Path, spa: Spa) -> None:
    write_recipe(tmp_path / "mini.yaml", RECIPE)
    for name in ("other", "mini"):
        ended = spa("run", "mini.yaml", "--until", "data", "--run-dir", f"runs/{name}")
        assert ended.returncode == 0, ended.stderr
    (tmp_path / "runs" / "other").rename(tmp_path / "runs" / b"m\xffni".decode(errors="surrogateescape"))
    status = spa("status")
    assert status.returncode == 0, status.stderr
    assert "mini" in status.stdout
    resumed = spa("resume", "nothing")
    assert resumed.returncode == 2
    assert "mini" in resumed.stderr
