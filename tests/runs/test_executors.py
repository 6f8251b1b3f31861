"""Processes of a run: they end with their children, with their runner, and one runner holds a run."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spa_recipes.errors import LockedError
from spa_recipes.run import processes, ray_cluster
from spa_recipes.run.rundir import RunDir
from tests.kit.processes import alive, wait_for

# --- executors ---


PARENT = "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)']); \
print(p.pid, flush=True); time.sleep(99)"


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_stop_ends_the_children_too(tmp_path: Path) -> None:
    log = tmp_path / "log"
    worker = processes.Worker([sys.executable, "-c", PARENT], log)
    wait_for(lambda: log.read_text().strip())
    child = int(log.read_text())
    assert worker.poll() is None
    worker.stop()
    assert worker.poll() is not None
    wait_for(lambda: not alive(child))


def test_a_launcher_that_is_gone_waits_for_no_room_in_the_cluster(tmp_path: Path) -> None:
    """However it ended: it may not have had the time to say so itself."""
    pending = tmp_path / "worker.pending"
    pending.write_text("for 2 x (8 GPU)\n")
    dies = ray_cluster.Task(["false"], tmp_path / "log", {}, pending)
    wait_for(lambda: dies.poll() is not None)
    assert not pending.exists()
    pending.write_text("for 2 x (8 GPU)\n")
    waits = ray_cluster.Task(["sleep", "99"], tmp_path / "log", {}, pending)
    assert waits.poll() is None
    assert pending.exists()
    waits.stop()
    assert not pending.exists()


# --- what a run's folder says ---


def test_one_runner_at_a_time(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "mini")
    code = f"""
import time
from pathlib import Path
from spa_recipes.run.rundir import RunDir
with RunDir(Path({str(run.path)!r})).locked():
    print("held", flush=True)
    time.sleep(99)
"""
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    begin = time.monotonic()
    with pytest.raises(LockedError, match=f"{socket.gethostname()} pid {other.pid}"), run.locked():
        pass
    assert time.monotonic() - begin < 1
    other.kill()  # a dead holder is taken over
    other.wait()
    assert (run.path / ".holder").exists()
    assert run.holder() is None
    with run.locked():
        assert f"pid {os.getpid()}" in str(run.holder())
