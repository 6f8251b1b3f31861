"""Whoever dies, by whatever signal, nothing of a stage outlives it: runner, worker, launcher, fork server."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from spa_recipes.run import processes
from tests.kit.processes import alive, wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")

START = """
import os, sys, time
from pathlib import Path
from spa_recipes.run.lifeline import end_with_starter
def here(name):
    path = Path(sys.argv[1], name)
    path.with_suffix(".new").write_text(str(os.getpid()))
    path.with_suffix(".new").rename(path)
"""
WAITS = "time.sleep(99)"
SPINS = "import ctypes; ctypes.PyDLL(None).sleep(99)"  # holds Python's lock, as a library in C may
WORKER = """
end_with_starter()
if os.fork() == 0:
    here("child")
    {body}
here("worker")
{body}
"""
LAUNCHER = """
import subprocess
worker = Path(sys.argv[1], "worker.py")
subprocess.Popen([sys.executable, str(worker), sys.argv[1]], start_new_session=True)
here("launcher")
time.sleep(99)
"""
RUNNER = """
from spa_recipes.run.processes import Worker
worker = Worker([sys.executable, str(Path(sys.argv[1], sys.argv[2])), sys.argv[1]], Path(sys.argv[1], "log"))
here("runner")
time.sleep(99)
"""


class Family:
    """Scripts in a folder, and the processes that came of them, by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, code in (("launcher", LAUNCHER), ("runner", RUNNER)):
            (folder / f"{name}.py").write_text(START + code)

    def worker(self, body: str) -> None:
        (self.folder / "worker.py").write_text(START + WORKER.format(body=body))

    def pid(self, name: str) -> int:
        wait_for((self.folder / name).exists, 30)
        return int((self.folder / name).read_text())

    def are_gone(self, *names: str) -> None:
        pids = [self.pid(name) for name in names]
        wait_for(lambda: not any(map(alive, pids)), 20)


@pytest.fixture
def family(tmp_path: Path) -> Iterator[Family]:
    made = Family(tmp_path)
    yield made
    for name in ("launcher", "runner", "worker", "child", "server"):
        if (tmp_path / name).exists() and alive(made.pid(name)):
            os.kill(made.pid(name), signal.SIGKILL)


@pytest.mark.parametrize("body", [WAITS, SPINS])
@pytest.mark.parametrize("started", ["worker.py", "launcher.py"])
def test_the_runner_is_killed(family: Family, started: str, body: str) -> None:
    family.worker(body)
    command = [sys.executable, str(family.folder / "runner.py"), str(family.folder), started]
    runner = subprocess.Popen(command)
    wait_for(lambda: all(map(family.pid, ("runner", "worker", "child"))))
    runner.kill()
    runner.wait()
    family.are_gone("worker", "child")


@pytest.mark.parametrize("body", [WAITS, SPINS])
@pytest.mark.parametrize("name", ["worker", "launcher"])
def test_the_worker_or_the_launcher_is_killed(family: Family, name: str, body: str) -> None:
    """A launcher has its processes in groups of their own, where no signal to its group reaches them."""
    family.worker(body)
    command = [sys.executable, str(family.folder / f"{name}.py"), str(family.folder)]
    started = processes.Worker(command, family.folder / "log")
    pids = [family.pid(each) for each in (name, "worker", "child")]
    os.kill(pids[0], signal.SIGKILL)
    wait_for(lambda: started.poll() is not None, 20)
    family.are_gone("worker", "child")


SERVER = """
import subprocess
from spa_recipes.run import forkserver, worker
forkserver.preload = lambda: None
def stage(spec):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(99)"])
    Path(sys.argv[1], "child").write_text(str(child.pid))
    here("worker")
    time.sleep(99)
worker.run_spec = stage
here("server")
forkserver.main()
"""


@pytest.mark.parametrize("how", ["server", "runner"])
def test_the_fork_server_or_its_runner_is_killed(family: Family, how: str) -> None:
    (family.folder / "server.py").write_text(START + SERVER)
    server = subprocess.Popen(
        [sys.executable, str(family.folder / "server.py"), str(family.folder)],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    assert server.stdin is not None
    server.stdin.write(b'{"spec": "spec", "log": "%s"}\n' % os.fsencode(family.folder / "log"))
    server.stdin.flush()
    assert all(map(family.pid, ("server", "worker", "child")))
    if how == "server":
        server.kill()
        server.wait()
    server.stdin.close()
    if how == "runner":
        server.wait()
    family.are_gone("server", "worker", "child")


RANKS = """
import torch.distributed as distributed
end_with_starter()
distributed.init_process_group("gloo")
distributed.barrier()
here("worker" if distributed.get_rank() == 0 else "child")
{body}
"""
LAUNCH_RUNNER = """
from spa_recipes.recipe.schema import AccelerateExecutor
from spa_recipes.run import executors, processes
executors.WORKER = "ranks"
folder = Path(sys.argv[1])
started = processes.Worker(executors._command(AccelerateExecutor(type="accelerate", num_processes=2), "sft", folder),
                           folder / "log")
Path(folder, "launcher").write_text(str(started._process.pid))
here("runner")
while started.poll() is None:
    time.sleep(0.05)
time.sleep(99)
"""


@pytest.mark.slow
@pytest.mark.parametrize("body", [WAITS, SPINS])
@pytest.mark.parametrize("killed", ["runner", "launcher", "worker"])
def test_two_ranks_that_train_together(family: Family, monkeypatch: pytest.MonkeyPatch, killed: str, body: str) -> None:
    (family.folder / "ranks.py").write_text(START + RANKS.format(body=body))
    (family.folder / "start.py").write_text(START + LAUNCH_RUNNER)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(family.folder), os.environ.get("PYTHONPATH", "")]))
    runner = subprocess.Popen([sys.executable, str(family.folder / "start.py"), str(family.folder)])
    wait_for(lambda: all((family.folder / name).exists() for name in ("launcher", "worker", "child")))
    os.kill(family.pid(killed), signal.SIGKILL)
    family.are_gone("launcher", "worker", "child")
    runner.kill()
    runner.wait()
