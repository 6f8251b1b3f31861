"""Logs of workers that ended badly, and a fork server that was killed: the line names the first real error."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from spa_recipes.errors import StageError, TryAgainError
from spa_recipes.run import processes
from spa_recipes.run.failure import stage_failure
from tests.kit.plans import plan_of

TRACEBACK = """Traceback (most recent call last):
  File "x.py", line 1, in <module>
    first()
KeyError: 'the first one'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "x.py", line 3, in <module>
    second()
RuntimeError: the second one
"""


@pytest.mark.parametrize(
    ("log", "words"),
    [
        (TRACEBACK, "exit code 1: KeyError: 'the first one'; "),
        ("".join(f"[rank1]: {line}\n" for line in TRACEBACK.splitlines()), "exit code 1: KeyError: 'the first one'; "),
        ("starting\nFatal Python error: Segmentation fault\n\nThread 0x1\n", "1: Fatal Python error: Segmentation"),
        ("error: no room\nbye\n", "exit code 1: error: no room; last lines of its log: error: no room | bye"),
        ("begins\nLoading weights:  50%|##   | 5/10 [00:01<00:01,  4.93it/s]", "last lines of its log: begins"),
        ("Loading weights:  50%|##   | 5/10 [00:01<00:01,  4.93it/s]\r", "it left nothing in its log"),
        (None, "it left nothing in its log"),
    ],
)
def test_the_end_of_a_worker_is_told_by_its_first_real_error(tmp_path: Path, log: str | None, words: str) -> None:
    if log is not None:
        (tmp_path / "worker.log").write_text(log)
    error = stage_failure(plan_of().stage("seed"), 1, tmp_path)
    assert isinstance(error, StageError)
    assert words in str(error)
    assert "it/s" not in str(error)


@pytest.mark.parametrize("body", ["os.kill(os.getpid(), 9)", "raise RuntimeError('no such library')"])
def test_a_fork_server_that_dies_is_told_by_its_own_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    start = subprocess.Popen

    def popen(command: list[str], **options: object) -> "subprocess.Popen[bytes]":
        return start([sys.executable, "-c", f"import os, sys; sys.stdin.readline(); {body}"], **options)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(subprocess, "Popen", popen)
    server = processes.ForkServer(tmp_path / "worker.log")
    running = server.start(tmp_path / "spec.json", tmp_path / "worker.log")
    while (code := running.poll()) is None:
        pass
    server.stop()
    error = stage_failure(plan_of().stage("seed"), code, tmp_path)
    if "kill" in body:
        assert code == -signal.SIGKILL
        assert isinstance(error, TryAgainError)
        assert "memory runs out" in str(error)
    else:
        assert code == 1
        assert "RuntimeError: no such library" in str(error)
        assert "RuntimeError" in (tmp_path / processes.SERVER_LOG).read_text()
