"""Stopped at a commit point or at any time, a run loses nothing; at length: `python -m tests.injection.campaign`."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.injection import checks
from tests.injection.faults import Fault, Point, lose_unsynced, read_notes
from tests.kit.processes import alive, wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
ROOT = Path(__file__).parents[2]


def campaign(folder: Path, *options: str) -> str:
    """What a campaign prints; it fails with the problems that it finds."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.injection.campaign", "--folder", str(folder), *options],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_stopped_at_chosen_points_nothing_is_lost(tmp_path: Path) -> None:
    """Twelve stops of `spa run`, `spa resume` and `spa judge` at calls of every kind; see `campaign.SHORT`."""
    printed = campaign(tmp_path, "--short")
    assert "12 kills in 3 trials" in printed
    assert "faults that were not met: 0" in printed


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_stopped_at_drawn_points_nothing_is_lost(tmp_path: Path) -> None:
    printed = campaign(tmp_path, "--kills", "60", "--seed", "1")
    assert "trials with problems: 0" in printed


# --- the tools notice what they are there for ---

WRITER = """
import json, shutil, sys
from pathlib import Path
from spa_recipes.state import atomic
from tests.injection import faults
folder = Path(sys.argv[1])
faults.install(folder, folder.with_suffix(".notes"), [faults.Fault(*json.loads(sys.argv[2]))])
atomic.write_text(folder / "one", "old")
with (folder / "log").open("a") as handle:
    handle.write("0123456789")
shutil.rmtree(folder / "many")
atomic.write_text(folder / "one", "new!")
(folder / "end").touch()
"""


@pytest.fixture
def stopped(tmp_path: Path) -> Callable[..., Path]:
    """A process that writes into a folder and is stopped by a fault; the folder."""
    folder = tmp_path / "folder"
    for name in "abcd":
        (folder / "many").mkdir(parents=True, exist_ok=True)
        (folder / "many" / name).touch()

    def run(*fault: object) -> Path:
        done = subprocess.run([sys.executable, "-c", WRITER, str(folder), json.dumps(fault)], cwd=ROOT)
        assert done.returncode == -signal.SIGKILL
        return folder

    return run


@pytest.mark.parametrize(("nth", "when", "found"), [(1, "before", None), (1, "after", "old"), (2, "before", "old")])
def test_a_fault_strikes_before_or_after_its_call(
    stopped: Callable[..., Path], nth: int, when: str, found: str | None
) -> None:
    folder = stopped("runner", "rename", ".one.tmp", nth, when, "process")
    assert ((folder / "one").read_text() if (folder / "one").exists() else None) == found
    assert bool(checks.leftovers(folder)) == (when == "before")
    assert not (folder / "end").exists()


def test_a_fault_strikes_in_the_middle_of_a_call(stopped: Callable[..., Path]) -> None:
    folder = stopped("runner", "rmtree", "many", 1, "half", "process")
    assert [path.name for path in sorted((folder / "many").iterdir())] == ["b", "d"]
    assert (folder / "log").read_text() == "0123456789"


def test_a_line_is_cut_in_the_middle(stopped: Callable[..., Path]) -> None:
    folder = stopped("runner", "write", "log", 1, "half", "process")
    assert (folder / "log").read_text() == "01234"


def test_a_power_loss_takes_what_was_not_synced(stopped: Callable[..., Path]) -> None:
    fault = Fault("runner", "rename", ".one.tmp", 2, "after", "power")
    folder = stopped(*fault)
    assert lose_unsynced(folder, folder.with_suffix(".notes"), fault) == ["log"]
    assert (folder / "log").read_text() == "01234"
    assert (folder / "one").read_text() == "new!"
    assert read_notes(folder.with_suffix(".notes"))[0].point == Point("runner", "fsync", ".one.tmp")


def test_a_stage_or_a_shard_that_was_made_again_is_found(tmp_path: Path, stopped: Callable[..., Path]) -> None:
    notes = read_notes(stopped("runner", "rename", ".one.tmp", 2, "after", "process").with_suffix(".notes"))
    before = checks.Snapshot({"stages/00-data": "manifest"}, frozenset({"one"}), {})
    now = before._replace(manifests={"stages/00-data": "another"})
    assert checks.lost_work(tmp_path, before, before, [], 2) == []
    problems = checks.lost_work(tmp_path, before, now, notes, 2)
    assert problems == ["stages/00-data: the finished stage was done again", *["one: the shard was made again"] * 2]


# --- what the campaign found ---


SERVER = """
import os, sys, time
from pathlib import Path
from spa_recipes.run import forkserver, worker
from spa_recipes.stages.context import StageSpec
StageSpec.read = lambda path: print("up", flush=True)
worker.run_stage = lambda spec: time.sleep(99)
print(forkserver.fork_stage(Path("spec"), Path(sys.argv[1]), os.pipe()), flush=True)
time.sleep(99)
"""


def test_a_stage_ends_when_its_fork_server_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(log)], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    stage = int(server.stdout.readline())
    wait_for(lambda: log.exists() and log.read_text() == "up\n")
    assert alive(stage)
    server.send_signal(signal.SIGKILL)
    server.wait()
    wait_for(lambda: not alive(stage))


IMPORTING = """
import time
from spa_recipes.run import forkserver
forkserver.preload = lambda: (print("importing", flush=True), time.sleep(99))
forkserver.main()
"""


def test_a_fork_server_that_still_imports_ends_when_its_runner_is_gone() -> None:
    server = subprocess.Popen([sys.executable, "-c", IMPORTING], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdin is not None
    assert server.stdout is not None
    assert server.stdout.readline() == b"importing\n"
    server.stdin.write(b'{"spec": "a request that waits')
    server.stdin.flush()
    with pytest.raises(subprocess.TimeoutExpired):
        server.wait(1)
    server.stdin.close()
    server.wait(30)
