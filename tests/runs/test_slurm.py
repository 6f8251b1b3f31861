"""Runs as jobs of a real Slurm with two nodes, which this machine plays (`tests/kit/slurm_up.sh`)."""

import json
import os
import re
import shutil
import signal
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
    pytest.mark.slurm,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(shutil.which("slurmctld") is None, reason="Slurm is not installed"),
    pytest.mark.skipif(os.geteuid() != 0, reason="the daemons of Slurm need root"),
]
KIT = Path(__file__).parents[1] / "kit"
TWO = {"type": "slurm", "nodes": 2, "gpus_per_node": 0}


@pytest.fixture(scope="module", autouse=True)
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = Path("/tmp") / f"spa-slurm-{os.getpid()}"  # a socket's path must be short
    subprocess.run([KIT / "slurm_up.sh", folder, str(20000 + 7 * (os.getpid() % 1000))], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield folder
        subprocess.run(["scancel", "--user=root"], check=False)
    subprocess.run([KIT / "slurm_down.sh", folder], check=True)
    shutil.rmtree(folder, ignore_errors=True)


def spa(folder: Path, *arguments: str) -> Answer:
    command = [sys.executable, "-m", "spa_recipes.cli", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment_with(), capture_output=True, text=True, check=False)
    return Answer(done.returncode, done.stdout, done.stderr)


def submit(folder: Path, *options: str) -> str:
    done = spa(folder, "submit", "mini.yaml", *options)
    assert done.code == 0, done.err
    return str(json.loads((folder / "runs" / "mini" / ".job").read_text())["slurm"])


def state(job: str) -> str:
    shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, check=False).stdout
    return next((word.partition("=")[2] for word in shown.split() if word.startswith("JobState=")), "")


def log(folder: Path) -> str:
    return "\n".join(path.read_text() for path in (folder / "runs" / "mini").glob("slurm-*.log"))


def completed(folder: Path, job: str) -> str:
    wait_for(lambda: state(job) not in ("RUNNING", "PENDING", "COMPLETING", "CONFIGURING"), 600)
    assert state(job) == "COMPLETED", log(folder)
    return log(folder)


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run on two nodes, in which a rank is killed while it trains, and a worker while it samples."""
    folder = tmp_path_factory.mktemp("slurm")
    write_recipe(folder / "mini.yaml", small(TWO))
    job = submit(folder)
    kill_rank(folder, "sft")
    kill_claimant(folder, "generate-1")
    completed(folder, job)
    return folder


def claims(folder: Path) -> list[Path]:
    return stage_files(folder, "generate-1", "attempts/1/**/*.claim")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same recipe in one process."""
    folder = tmp_path_factory.mktemp("alone")
    write_recipe(folder / "mini.yaml", small({"type": "fork"}))
    done = run_spa(folder, "run", "mini.yaml")
    assert done.returncode == 0, done.stderr
    return folder


def keys(folder: Path) -> list[str]:
    return [stage["key"] for stage in json.loads((folder / "runs" / "mini" / "plan.json").read_text())]


def test_a_run_on_two_nodes_is_that_of_one_process_though_processes_were_killed(disturbed: Path, alone: Path) -> None:
    import pyarrow.parquet as pq

    assert keys(disturbed) == keys(alone)
    for stage in ("sft", "seed", "refine-1"):
        assert losses(disturbed, stage) == pytest.approx(losses(alone, stage), rel=1e-3)
    tables = []
    for folder in (disturbed, alone):
        (path,) = stage_files(folder, "generate-1", "output/completions.parquet")
        tables.append(pq.read_table(path).to_pylist())
    same = sum(a["response_ids"] == b["response_ids"] for a, b in zip(*tables, strict=True))
    assert same >= 0.9 * len(tables[0])  # weights differ by rounding, so a few samples may


def test_a_killed_rank_goes_on_from_its_checkpoint_within_the_run(disturbed: Path) -> None:
    assert len(stage_files(disturbed, "sft", "attempts/*")) == 2
    assert "begun again" in log(disturbed)
    (progress,) = stage_files(disturbed, "sft", "attempts/2/progress.jsonl")
    steps = [line["done"] for line in map(json.loads, progress.read_text().splitlines()) if line.get("unit") == "steps"]
    assert steps[0] > 1


def test_the_shard_of_a_killed_worker_is_taken_by_another(disturbed: Path) -> None:
    assert len(stage_files(disturbed, "generate-1", "attempts/*")) == 1
    (notices,) = stage_files(disturbed, "generate-1", "attempts/1/progress-pool.jsonl")
    assert re.search(r"worker pool-\d is gone .* [1-9]\d* of its shards are free again", notices.read_text())
    assert "another begins in its place" in notices.read_text()


def test_a_run_goes_on_where_a_node_went_down(disturbed: Path, tmp_path: Path) -> None:
    """`srun` says 0 of a step whose node is gone."""
    folder = tmp_path / "down"
    shutil.copytree(disturbed, folder, symlinks=True)
    (path,) = stage_files(folder, "generate-1", "")
    before = (path / "output" / "completions.parquet").read_bytes()
    shutil.rmtree(path)
    job = submit(folder)
    try:
        wait_for(lambda: claims(folder), 300)
        subprocess.run(["scontrol", "update", "nodename=n2", "state=down", "reason=test"], check=True)
        completed(folder, job)
    finally:
        subprocess.run(["scontrol", "update", "nodename=n2", "state=resume"], check=False)
    (path,) = stage_files(folder, "generate-1", "output/completions.parquet")
    assert path.read_bytes() == before
    wait_for(lambda: _idle() == 2, 60)


def _idle() -> int:
    said = subprocess.run(["sinfo", "-h", "-t", "idle", "-o", "%D"], capture_output=True, text=True, check=True).stdout
    return int(said.strip() or 0)


@pytest.mark.parametrize("how", ["cancel", "driver"])
def test_nothing_of_a_job_stays_when_it_is_cancelled_or_its_driver_killed(tmp_path: Path, how: str) -> None:
    write_recipe(tmp_path / "mini.yaml", small({**TWO, "requeue": False}, sft={"num_train_epochs": 50}))
    submit(tmp_path, "--until", "sft")
    wait_for(lambda: stage_files(tmp_path, "sft", "attempts/1/progress.jsonl"), 300)
    assert "RUNNING on n[1-2]" in spa(tmp_path, "status", "mini").out
    assert workers_in(tmp_path)
    if how == "cancel":
        assert "cancelled job" in spa(tmp_path, "cancel", "mini").out
    else:
        driver = next(pid for pid in _commands(tmp_path) if pid)
        os.kill(driver, signal.SIGKILL)
    begin = time.monotonic()
    wait_for(lambda: not workers_in(tmp_path) and not _commands(tmp_path), 10)
    assert time.monotonic() - begin < 10
    wait_for(lambda: _idle() == 2, 60)


def _commands(folder: Path) -> list[int]:
    """Processes of `spa run` in a folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if "spa_recipes.cli" in command and any(str(folder) in part for part in command):
            found.append(int(entry.name))
    return found


def test_fewer_gpus_than_asked_are_told_before_a_stage(tmp_path: Path) -> None:
    """Slurm counts devices here that torch does not see. No step holds them, as one around `spa run` would."""
    recipe = small({"type": "slurm", "nodes": 1, "gpus_per_node": 2})
    write_recipe(tmp_path / "mini.yaml", recipe)
    command = ["salloc", "-N1", "-n1", "--gpus-per-node=2", sys.executable, "-m", "spa_recipes.cli", "run", "mini.yaml"]
    done = subprocess.run(command, cwd=tmp_path, env=environment_with(), capture_output=True, text=True, check=False)
    assert "compute.executor.gpus_per_node: node n" in done.stderr, done.stderr + done.stdout
    assert "has 0 GPUs that torch sees, fewer than asked" in done.stderr
    assert not stage_files(tmp_path, "base", "attempts/*")


def test_outside_of_a_job_and_in_one_that_is_too_small_a_run_is_refused(tmp_path: Path) -> None:
    write_recipe(tmp_path / "mini.yaml", small(TWO))
    one_error(spa(tmp_path, "run", "mini.yaml"), 2)
    assert "`spa submit RECIPE`" in spa(tmp_path, "run", "mini.yaml").err
    command = ["srun", "-N1", "-n1", sys.executable, "-m", "spa_recipes.cli", "run", "mini.yaml"]
    done = subprocess.run(command, cwd=tmp_path, env=environment_with(), capture_output=True, text=True, check=False)
    assert "asks for 2 nodes, and job" in done.stderr
    refused = spa(tmp_path, "submit", "mini.yaml", "--set", "compute.executor.partition=nowhere")
    assert "Slurm does not take the job" in one_error(refused, 2) or "Slurm does not take the job" in refused.err
