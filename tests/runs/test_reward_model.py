"""Runs that a reward model judges, and its training in two processes."""

import json
import math
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.kit.cli import run_spa
from tests.kit.recipes import mini, write_recipe
from tests.kit.runs import metrics, stage_dir
from tests.kit.training import (
    END,
    make_env,
    make_pairs,
    same_weights,
    train_rewards,
)

# --- training ---


TWO = """
import os, sys, pathlib
rank, policy, folder, port = sys.argv[1:]
os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
from tests.kit.training import train_rewards
from tests.kit.training import make_env, make_pairs
env = make_env(pathlib.Path(policy), pathlib.Path(folder))
train_rewards(pathlib.Path(policy), make_pairs(21, reference=False), env, per_device_train_batch_size=2)
"""


@pytest.mark.slow
def test_two_processes_train_the_same_model(policy: Path, tmp_path: Path) -> None:
    one = train_rewards(policy, make_pairs(21, reference=False), make_env(policy, tmp_path / "one"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, str(rank), str(policy), str(tmp_path / "two"), port],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for worker in workers:
            _, stderr = worker.communicate(timeout=500)
            assert worker.returncode == 0, stderr
    finally:
        for worker in workers:
            worker.kill()
    assert same_weights(tmp_path / "one" / "out", tmp_path / "two" / "out", tolerance=1e-4)
    log = [json.loads(line) for line in (tmp_path / "two" / "out" / "training_log.jsonl").read_text().splitlines()]
    for ours, theirs in zip(one.history, log, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours["rewards/accuracies"] == theirs["rewards/accuracies"]


# --- a run ---


RUN = {"data": {"prompts_per_iteration": [32], "heldout": 0}, "evaluation": {"enabled": False, "reward": "none"}}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a run was judged by a reward model of its own."""
    folder = tmp_path_factory.mktemp("home")
    write_recipe(folder / "own.yaml", mini(**RUN, name="own", judge={"type": "reward_model"}))
    done = run_spa(folder, "run", "own.yaml")
    assert done.returncode == 0, done.stderr + done.stdout
    return folder


def test_a_run_is_judged_by_the_reward_model_it_trains(home: Path) -> None:
    assert metrics(home, "reward-model", "own")["train_loss"] > 0
    assert 0 <= metrics(home, "judge-1", "own")["accuracy_vs_gold"] <= 1
    rewards = {
        (row["item"], row["sample"]): row["reward"]
        for row in pq.read_table(stage_dir(home, "reward-1", "own") / "output" / "rewards.parquet").to_pylist()
    }
    lines = (stage_dir(home, "judge-1", "own") / "output" / "judgments.jsonl").read_text().splitlines()
    assert lines
    for judgment in map(json.loads, lines):
        chosen, rejected = (rewards[judgment["item"], judgment[which]] for which in ("chosen", "rejected"))
        assert chosen >= rejected
        assert judgment["p_chosen"] == pytest.approx(1 / (1 + math.exp(rejected - chosen)), abs=1e-9)


def test_a_run_is_judged_by_a_reward_model_from_a_folder(home: Path) -> None:
    """The same model, copied: nothing is trained, and answers get the same rewards from their texts."""
    shutil.copytree(stage_dir(home, "reward-model", "own") / "output" / "model", home / "copied")
    judge = {"type": "reward_model", "model_name_or_path": "copied"}
    write_recipe(home / "given.yaml", mini(**RUN, name="given", judge=judge))
    done = run_spa(home, "run", "given.yaml")
    assert done.returncode == 0, done.stderr + done.stdout
    assert not list((home / "runs" / "given" / "stages").glob("*reward-model*"))
    assert 0 <= metrics(home, "judge-1", "given")["accuracy_vs_gold"] <= 1
    own, given = (
        pq.read_table(stage_dir(home, "reward-1", run) / "output" / "rewards.parquet").to_pylist()
        for run in ("own", "given")
    )
    answers = pq.read_table(stage_dir(home, "generate-1", "own") / "output" / "completions.parquet").to_pylist()
    # A text tells neither where an answer was cut off nor which special tokens stood in it.
    plain = [k for k, answer in enumerate(answers) if answer["response_ids"][-1] == min(answer["response_ids"]) == END]
    assert len(plain) > 10
    assert [own[k]["reward"] for k in plain] == pytest.approx([given[k]["reward"] for k in plain], abs=1e-5)


def test_a_language_model_as_the_judge_is_one_line(home: Path) -> None:
    policy = stage_dir(home, "sft", "own") / "output" / "model"
    judge = {"type": "reward_model", "model_name_or_path": str(policy)}
    write_recipe(home / "wrong.yaml", mini(**RUN, name="wrong", judge=judge))
    done = run_spa(home, "run", "wrong.yaml")
    assert done.returncode == 3
    assert "one output (num_labels 1), not 2" in done.stderr
    assert "Traceback" not in done.stderr
