"""Several processes: the stages that load a model under `accelerate launch`, on the CPU."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.kit.cli import run_spa
from tests.kit.processes import processes_of, wait_for
from tests.kit.recipes import merged, mini, write_recipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
TWO = {"compute": {"executor": {"type": "accelerate", "num_processes": 2}}}
BASE = mini(
    evaluation={"enabled": False},
    data={"prompts_per_iteration": [32]},
    sft={"per_device_train_batch_size": 8},
    seed_training={"per_device_train_batch_size": 8},
    refine={"per_device_train_batch_size": 8},
)


def output(folder: Path, run: str, stage: str, name: str) -> Path:
    (found,) = (folder / f"runs-{run}" / run / "stages").glob(f"[0-9][0-9]-{stage}-????????/output/{name}")
    return found


def losses(folder: Path, run: str, stage: str) -> list[float]:
    log = output(folder, run, stage, "model/training_log.jsonl").read_text()
    return [json.loads(line)["loss"] for line in log.splitlines()]


def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    for name, changes in (("one", {}), ("two", TWO)):
        write_recipe(tmp_path / f"{name}.yaml", merged(merged(BASE, changes), {"name": name}))
        # A folder of its own, so that the second run takes nothing over from the first.
        done = run_spa(tmp_path, "run", f"{name}.yaml", "--run-dir", f"runs-{name}/{name}")
        assert done.returncode == 0, done.stderr + done.stdout
    for stage in ("sft", "seed", "refine-1"):
        assert losses(tmp_path, "two", stage) == pytest.approx(losses(tmp_path, "one", stage), rel=1e-3)
    tables = [
        pq.read_table(output(tmp_path, run, "generate-1", "completions.parquet")).to_pylist() for run in ("one", "two")
    ]
    assert len(tables[0]) == len(tables[1]) == 64
    same = sum(a["response_ids"] == b["response_ids"] for a, b in zip(*tables, strict=True))
    assert same > 48  # weights differ by rounding, so a few samples do


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_no_process_outlives_the_runner(tmp_path: Path) -> None:
    write_recipe(tmp_path / "mini.yaml", merged(BASE, TWO))
    command = [sys.executable, "-m", "spa_recipes.cli", "run", "mini.yaml"]
    running = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: list((tmp_path / "runs").glob("mini/stages/*-sft-*/attempts/1/progress.jsonl")))
    running.send_signal(signal.SIGKILL)
    running.wait()
    wait_for(lambda: not processes_of(tmp_path))
