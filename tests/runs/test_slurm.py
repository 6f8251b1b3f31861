"""Runs as jobs of a real Slurm with two nodes, which this machine plays (`tests/kit/slurm_up.sh`)."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from spa_recipes.run.submit import SECONDS_TO_STOP
from tests.kit.cli import environment_with, one_error
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


def submit(folder: Path, *options: str, run: str = "mini") -> str:
    done = spa(folder, "submit", "mini.yaml", *options)
    assert done.code == 0, done.err
    return str(json.loads((folder / "runs" / run / ".job").read_text())["slurm"])


def shown(job: str, name: str) -> str:
    """What Slurm says of a job under a name; empty where it does not answer."""
    said = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, check=False).stdout
    return next((word.partition("=")[2] for word in said.split() if word.startswith(f"{name}=")), "")


def limit(job: str, minutes: int) -> None:
    """Set the longest time of a job."""
    subprocess.run(["scontrol", "update", f"jobid={job}", f"timelimit={minutes}"], check=True)


def log(folder: Path, run: str = "mini") -> str:
    return "\n".join(path.read_text() for path in (folder / "runs" / run).glob("slurm-*.log"))


def completed(folder: Path, job: str, run: str = "mini") -> str:
    at_work = ("", "RUNNING", "PENDING", "COMPLETING", "CONFIGURING")
    wait_for(lambda: shown(job, "JobState") not in at_work, 900)
    assert shown(job, "JobState") == "COMPLETED", log(folder, run)
    return log(folder, run)


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run on two nodes, in which a rank is killed while it trains, and a worker while it samples."""
    folder = tmp_path_factory.mktemp("slurm")
    write_recipe(folder / "mini.yaml", small(TWO))
    job = submit(folder)
    signal_rank(folder, "sft", signal.SIGKILL)
    kill_claimant(folder)
    completed(folder, job)
    return folder


def test_a_run_on_two_nodes_is_that_of_one_process_though_processes_were_killed(disturbed: Path, alone: Path) -> None:
    check_equal(disturbed, alone)


def test_a_killed_rank_goes_on_from_its_checkpoint_within_the_run(disturbed: Path) -> None:
    assert "begun again" in log(disturbed)
    check_goes_on(disturbed, "sft")


def test_the_shard_of_a_killed_worker_is_taken_by_another(disturbed: Path) -> None:
    check_shard_freed(disturbed)


@pytest.mark.slow
def test_a_run_of_one_process_goes_on_on_nodes_of_which_one_goes_down_and_back_in_one_process(
    alone: Path, tmp_path: Path
) -> None:
    """`srun` says 0 of a step whose node is gone."""
    folder = tmp_path / "down"
    shutil.copytree(alone, folder, symlinks=True)
    begin_again_from(folder, "generate-1")
    write_recipe(folder / "mini.yaml", small(TWO))
    job = submit(folder, "--until", "generate-1")
    try:
        with standing_still(folder, "n2"):
            subprocess.run(["scontrol", "update", "nodename=n2", "state=down", "reason=test"], check=True)
        completed(folder, job)
    finally:
        subprocess.run(["scontrol", "update", "nodename=n2", "state=resume"], check=False)
    check_shard_freed(folder)
    assert "is gone (exit code 0)" in log(folder)
    assert sampled(folder) == sampled(alone)
    write_recipe(folder / "mini.yaml", small({"type": "fork"}))
    done = spa(folder, "run", "mini.yaml")
    assert done.code == 0, done.err + done.out
    check_equal(folder, alone)
    wait_for(lambda: _idle() == 2, 60)


@pytest.mark.slow
def test_a_job_whose_time_runs_out_is_queued_again_and_goes_on(tmp_path: Path) -> None:
    """A process that stands still keeps the training from ending before the time does."""
    write_recipe(tmp_path / "mini.yaml", small({**TWO, "time": "0:30:00"}))
    job = submit(tmp_path, "--until", "sft")
    signal_rank(tmp_path, "sft", signal.SIGSTOP)
    hours, minutes, _ = map(int, shown(job, "RunTime").split(":"))
    limit(job, minutes=60 * hours + minutes + 1 + SECONDS_TO_STOP // 60)
    wait_for(lambda: shown(job, "Restarts") == "1", 400)
    limit(job, minutes=30)
    said = completed(tmp_path, job)
    check_goes_on(tmp_path, "sft")
    assert "(attempt 2)" in said


@pytest.mark.slow
def test_a_rehearsal_takes_a_few_rows_through_every_stage_on_the_nodes(tmp_path: Path) -> None:
    write_recipe(tmp_path / "mini.yaml", small(TWO))
    command = [
        "salloc",
        "-N2",
        "--exclusive",
        sys.executable,
        "-m",
        "spa_recipes.cli",
        "run",
        "mini.yaml",
        "--rehearse",
    ]
    done = subprocess.run(command, cwd=tmp_path, env=environment_with(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    check_rehearsal(tmp_path, done.stdout)


@pytest.mark.slow
def test_a_rehearsal_that_is_submitted_does_so_in_a_job(tmp_path: Path) -> None:
    write_recipe(tmp_path / "mini.yaml", small(TWO))
    job = submit(tmp_path, "--rehearse", run="rehearsals/mini")
    check_rehearsal(tmp_path, completed(tmp_path, job, run="rehearsals/mini"))


def _idle() -> int:
    said = subprocess.run(["sinfo", "-h", "-t", "idle", "-o", "%D"], capture_output=True, text=True, check=True).stdout
    return int(said.strip() or 0)


@pytest.mark.slow
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
