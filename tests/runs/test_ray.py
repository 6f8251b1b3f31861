"""Runs on a real Ray cluster with two nodes, which this machine plays (`tests/kit/ray_nodes.py`)."""

import importlib.util
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.cli import Answer, environment_with, one_error
from tests.kit.clusters import (
    begin_again_from,
    check_equal,
    check_goes_on,
    check_rehearsal,
    check_shard_freed,
    kill_claimant,
    sampled,
    signal_rank,
    small,
    spa,
    stage_files,
    standing_still,
    workers_in,
)
from tests.kit.processes import wait_for
from tests.kit.recipes import write_recipe

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
]
ROOT = Path(__file__).parents[2]


class Nodes:
    """The cluster."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.kit.ray_nodes"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.address = self._line()
        self.second = self._line()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def lose_second(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        assert self._line() == "gone"

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # else Ray takes this machine's own address instead
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_worker_niceness", "0")  # on a busy machine, the others would have all of the time
        found = Nodes()
        yield found
        found.end()


def executor(address: str, **changes: object) -> dict[str, object]:
    return {"type": "ray", "address": address, "nodes": 2, "gpus_per_node": 0, "wait_minutes": 2, **changes}


def begin(folder: Path, *options: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "spa_recipes.cli", "run", "mini.yaml", "--trust", *options]
    return subprocess.Popen(
        command, cwd=folder, env=environment_with(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def end(running: "subprocess.Popen[str]") -> Answer:
    out, err = running.communicate(timeout=1500)
    return Answer(running.returncode, out, err)


@pytest.fixture(scope="module")
def disturbed(nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run, in which a rank is killed while it trains, and a worker while it samples."""
    folder = tmp_path_factory.mktemp("ray")
    write_recipe(folder / "mini.yaml", small(executor(nodes.address)))
    running = begin(folder)
    signal_rank(folder, "sft", signal.SIGKILL)
    kill_claimant(folder)
    done = end(running)
    assert done.code == 0, done.err + done.out
    return folder


def test_a_run_on_two_nodes_is_that_of_one_process_though_processes_were_killed(disturbed: Path, alone: Path) -> None:
    check_equal(disturbed, alone)


def test_a_killed_rank_goes_on_from_its_checkpoint_and_the_shard_of_a_killed_worker_is_taken_by_another(
    disturbed: Path,
) -> None:
    check_goes_on(disturbed, "sft")
    check_shard_freed(disturbed)


@pytest.mark.slow
def test_sigterm_is_143_and_leaves_no_process(nodes: Nodes, tmp_path: Path) -> None:
    write_recipe(tmp_path / "mini.yaml", small(executor(nodes.address), sft={"num_train_epochs": 50}))
    running = begin(tmp_path, "--until", "sft")
    wait_for(lambda: stage_files(tmp_path, "sft", "attempts/1/progress.jsonl"), 300)
    running.send_signal(signal.SIGTERM)
    done = end(running)
    assert done.code == 143
    wait_for(lambda: not workers_in(tmp_path), 10)


@pytest.mark.slow
def test_a_killed_driver_leaves_no_process(nodes: Nodes, tmp_path: Path) -> None:
    write_recipe(tmp_path / "mini.yaml", small(executor(nodes.address), sft={"num_train_epochs": 50}))
    running = begin(tmp_path, "--until", "sft")
    wait_for(lambda: stage_files(tmp_path, "sft", "attempts/1/progress.jsonl"), 300)
    assert workers_in(tmp_path)
    running.kill()
    end(running)
    wait_for(lambda: not workers_in(tmp_path), 10)


@pytest.mark.parametrize("address", ["127.0.0.1:{free}", "no-such-host.invalid:6379"])
def test_a_bad_address_is_one_line_within_seconds(tmp_path: Path, address: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        free = listener.getsockname()[1]
    write_recipe(tmp_path / "mini.yaml", small(executor(address.format(free=free))))
    before = time.monotonic()
    one_error(end(begin(tmp_path)), 75)
    assert time.monotonic() - before < 15


@pytest.mark.slow
def test_status_says_for_what_a_run_waits_that_has_no_room_and_in_the_end_one_line_does(
    nodes: Nodes, tmp_path: Path
) -> None:
    lacking = executor(nodes.address, resources={"trainer": 1}, wait_minutes=1)
    write_recipe(tmp_path / "mini.yaml", small(lacking))
    running = begin(tmp_path)
    says = "waits for room in the Ray cluster: for 2 x (1 CPU, 1 trainer), of which 2 CPU are free"
    wait_for(lambda: list((tmp_path / "runs" / "mini").glob("*.pending")), 300)
    assert says in spa(tmp_path, "status", "mini").out
    assert "no room for 2 x (1 CPU, 1 trainer) within 1 minutes" in one_error(end(running), 75)
    assert says not in spa(tmp_path, "status", "mini").out


@pytest.mark.slow
def test_a_rehearsal_takes_a_few_rows_through_every_stage_on_the_nodes(nodes: Nodes, tmp_path: Path) -> None:
    write_recipe(tmp_path / "mini.yaml", small(executor(nodes.address), evaluation={"enabled": True}))
    done = end(begin(tmp_path, "--rehearse"))
    assert done.code == 0, done.err + done.out
    check_rehearsal(tmp_path, done.out, "evaluate-1")


@pytest.mark.slow
def test_a_run_of_one_process_goes_on_on_nodes_of_which_one_goes_down_and_back_in_one_process(
    nodes: Nodes, alone: Path, tmp_path: Path
) -> None:
    """The last test, as the node does not come back."""
    folder = tmp_path / "down"
    shutil.copytree(alone, folder, symlinks=True)
    begin_again_from(folder, "generate-1")
    write_recipe(folder / "mini.yaml", small(executor(nodes.address)))
    running = begin(folder, "--until", "generate-1")
    with standing_still(folder, nodes.second):
        nodes.lose_second()
    done = end(running)
    assert done.code == 0, done.err + done.out
    check_shard_freed(folder)
    assert sampled(folder) == sampled(alone)
    write_recipe(folder / "mini.yaml", small({"type": "fork"}))
    done = spa(folder, "run", "mini.yaml")
    assert done.code == 0, done.err + done.out
    check_equal(folder, alone)
