"""Runs on a real Ray cluster with two nodes, which this machine plays (`tests/kit/ray_nodes.py`)."""

import importlib.util
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.cli import Answer, environment_with, one_error, run_spa
from tests.kit.clusters import kill_claimant, kill_rank, losses, small, stage_files, workers_in
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

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def lose_one(self) -> None:
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
    out, err = running.communicate(timeout=700)
    return Answer(running.returncode, out, err)


@pytest.fixture(scope="module")
def disturbed(nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run, in which a rank is killed while it trains, and a worker while it samples."""
    folder = tmp_path_factory.mktemp("ray")
    write_recipe(folder / "mini.yaml", small(executor(nodes.address)))
    running = begin(folder)
    kill_rank(folder, "sft")
    kill_claimant(folder, "generate-1")
    done = end(running)
    assert done.code == 0, done.err + done.out
    return folder


def claims(folder: Path) -> list[Path]:
    return stage_files(folder, "generate-1", "attempts/1/**/*.claim")


def test_a_run_on_two_nodes_is_that_of_one_process_though_processes_were_killed(
    disturbed: Path, tmp_path: Path
) -> None:
    write_recipe(tmp_path / "mini.yaml", small({"type": "fork"}))
    done = run_spa(tmp_path, "run", "mini.yaml")
    assert done.returncode == 0, done.stderr
    for stage in ("sft", "seed", "refine-1"):
        assert losses(disturbed, stage) == pytest.approx(losses(tmp_path, stage), rel=1e-3)
    plans = [json.loads((folder / "runs" / "mini" / "plan.json").read_text()) for folder in (disturbed, tmp_path)]
    assert [stage["key"] for stage in plans[0]] == [stage["key"] for stage in plans[1]]
    assert len(stage_files(disturbed, "sft", "attempts/*")) == 2
    assert len(stage_files(disturbed, "generate-1", "attempts/*")) == 1
    (notices,) = stage_files(disturbed, "generate-1", "attempts/1/progress-pool.jsonl")
    assert re.search(r"worker pool-\d is gone .* [1-9]\d* of its shards are free again", notices.read_text())


def test_sigterm_is_143_and_leaves_no_process(nodes: Nodes, tmp_path: Path) -> None:
    write_recipe(tmp_path / "mini.yaml", small(executor(nodes.address), sft={"num_train_epochs": 50}))
    running = begin(tmp_path, "--until", "sft")
    wait_for(lambda: stage_files(tmp_path, "sft", "attempts/1/progress.jsonl"), 300)
    running.send_signal(signal.SIGTERM)
    done = end(running)
    assert done.code == 143
    wait_for(lambda: not workers_in(tmp_path), 10)


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


def test_a_run_goes_on_where_a_node_went_down(nodes: Nodes, disturbed: Path, tmp_path: Path) -> None:
    """The last test, as the node does not come back."""
    folder = tmp_path / "down"
    shutil.copytree(disturbed, folder, symlinks=True)
    (path,) = stage_files(folder, "generate-1", "")
    before = (path / "output" / "completions.parquet").read_bytes()
    shutil.rmtree(path)
    running = begin(folder)
    wait_for(lambda: claims(folder), 300)
    nodes.lose_one()
    done = end(running)
    assert done.code == 0, done.err + done.out
    (table,) = stage_files(folder, "generate-1", "output/completions.parquet")
    assert table.read_bytes() == before
