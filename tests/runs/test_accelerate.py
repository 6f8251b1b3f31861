"""Several processes: the stages that load a model under `accelerate launch`, on the CPU."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from tests.kit.cli import run_fresh
from tests.kit.processes import processes_of, wait_for
from tests.kit.recipes import merged, mini, write_recipe
from tests.kit.training import same_weights

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
TWO = {"compute": {"executor": {"type": "accelerate", "num_processes": 2, "sharding": "none"}}}
ROOT = Path(__file__).parents[2]
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed (extra deepspeed)"
)
BASE = mini(
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


def run(folder: Path, name: str, changes: dict[str, Any], *options: str) -> None:
    """In a folder of its own, so that it takes nothing over from another run."""
    write_recipe(folder / f"{name}.yaml", merged(merged(BASE, changes), {"name": name}))
    before = filter(None, [os.environ.get("PYTHONPATH")])
    path = os.pathsep.join([str(ROOT / "tests" / "kit" / "cpu_shards"), str(ROOT), *before])
    # A fresh interpreter, as it is told that the CPU shares trainings out, too.
    done = run_fresh(folder, "run", f"{name}.yaml", "--run-dir", f"runs-{name}/{name}", *options, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr + done.stdout


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    run(folder, "one", {})
    return folder


def check_trainings(folder: Path, one: Path) -> list[Path]:
    """The models of the run `two`, which are those of one process within rounding, and so are the losses."""
    models = []
    for stage in ("sft", "seed", "refine-1"):
        assert losses(folder, "two", stage) == pytest.approx(losses(one, "one", stage), rel=1e-3)
        models.append(output(folder, "two", stage, "model"))
        assert same_weights(models[-1], output(one, "one", stage, "model"), tolerance=1e-3)
    return models


@pytest.mark.parametrize("way", ["none", "fsdp2"])
def test_accelerates_own_configuration_is_launched(way: str, one: Path, tmp_path: Path) -> None:
    """The file that `accelerate config` writes, with what it says of sharding."""
    content: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "MULTI_GPU",
        "machine_rank": 0,
        "main_training_function": "main",
        "mixed_precision": "no",
        "num_machines": 1,
        "num_processes": 2,
        "rdzv_backend": "static",
        "same_network": True,
        "use_cpu": True,
    }
    if way == "fsdp2":
        fsdp = {
            "fsdp_version": 2,
            "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "fsdp_cpu_ram_efficient_loading": False,
            "fsdp_reshard_after_forward": True,
            "fsdp_state_dict_type": "SHARDED_STATE_DICT",
        }
        content |= {"distributed_type": "FSDP", "fsdp_config": fsdp}
    (tmp_path / "accelerate.yaml").write_text(yaml.safe_dump(content))
    executor = {"type": "accelerate", "num_processes": 2, "config_file": "accelerate.yaml"}
    kept = {"storage": {"keep_checkpoints": True}, "sft": {"save_steps": 10}}
    run(tmp_path, "two", {"compute": {"executor": executor}, **kept}, "--trust")
    sft = check_trainings(tmp_path, one)[0].parents[1]
    shares = list(sft.glob("work/**/*.distcp"))  # of each process, as torch saves what is shared out
    assert len({path.name.split("_")[2] for path in shares}) == (2 if way == "fsdp2" else 0)


@pytest.mark.parametrize("sharding", ["none", "fsdp2", pytest.param("zero3", marks=needs_deepspeed)])
def test_two_processes_do_what_one_does(sharding: str, one: Path, tmp_path: Path) -> None:
    """Trainings, sampling, scoring and evaluation: losses, pairs, weights, answers and figures."""
    run(tmp_path, "two", merged(TWO, {"compute": {"executor": {"sharding": sharding}}}))
    for model in check_trainings(tmp_path, one):
        spec = json.loads((model.parents[1] / "attempts" / "1" / "spec.json").read_text())
        assert spec["runtime"]["sharding"] == sharding
    traces = [
        [json.loads(line) for line in output(*of, "refine-1", "model/pairs_trace.jsonl").read_text().splitlines()]
        for of in ((tmp_path, "two"), (one, "one"))
    ]
    assert [pair["row"] for pair in traces[0]] == [pair["row"] for pair in traces[1]]
    assert [pair["p_detect"] for pair in traces[0]] == pytest.approx([pair["p_detect"] for pair in traces[1]], abs=1e-2)
    tables = [
        pq.read_table(output(*of, "generate-1", "completions.parquet")).to_pylist()
        for of in ((one, "one"), (tmp_path, "two"))
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
