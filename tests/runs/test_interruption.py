"""Stopped anywhere, a run goes on and ends with the same bytes; nothing of it stays behind when it is stopped."""

import json
import signal
import sys
from pathlib import Path

import pytest

from tests.kit.cli import run_spa, start
from tests.kit.models import judge_inputs
from tests.kit.processes import processes_of, wait_for
from tests.kit.recipes import mini, write_recipe

RECIPE = mini(
    # Enough steps in refine-1 that a kill at its first checkpoint comes before its end.
    data={"prompts_per_iteration": [112, 32]},
    sft={"save_steps": 4},
    seed_training={"save_steps": 3},
    refine={"save_steps": 1},
)
RESULTS = [
    ("judge-1", "pairs.jsonl"),
    ("judge-2", "pairs.jsonl"),
    ("refine-2", "model/model.safetensors"),
    ("refine-2", "model/pairs_trace.jsonl"),
    ("evaluate-2", "samples.jsonl"),
]


def results(folder: Path) -> dict[str, bytes]:
    found = {}
    for stage, name in RESULTS:
        (path,) = (folder / "runs" / "mini" / "stages").glob(f"[0-9][0-9]-{stage}-????????/output/{name}")
        found[f"{stage}/{name}"] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    write_recipe(folder / "mini.yaml", RECIPE)
    done = run_spa(folder, "run", "mini.yaml")
    assert done.returncode == 0, done.stderr
    return results(folder)


def stage(folder: Path, name: str, pattern: str) -> list[Path]:
    return list((folder / "runs" / "mini" / "stages").glob(f"[0-9][0-9]-{name}-????????/{pattern}"))


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_killed_again_and_again_it_ends_with_the_same_bytes(tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    """SIGKILL to the runner in the middle of SFT, of sampling and of refining; then `spa resume` to the end."""
    write_recipe(tmp_path / "mini.yaml", RECIPE)
    moments = [
        lambda: stage(tmp_path, "sft", "work/checkpoints/checkpoint-*/spa_checkpoint.json"),
        lambda: stage(tmp_path, "generate-1", "work/shards/completions/*.parquet"),
        lambda: stage(tmp_path, "refine-1", "work/checkpoints/checkpoint-1/spa_checkpoint.json"),
    ]
    for moment in moments:
        running = start(tmp_path, "run", "mini.yaml")
        wait_for(moment)
        assert running.kill() == -signal.SIGKILL
        wait_for(lambda: not processes_of(tmp_path))
    done = run_spa(tmp_path, "resume")
    assert done.returncode == 0, done.stderr
    assert results(tmp_path) == uninterrupted
    resumed = []
    for name in ("sft", "refine-1"):
        (manifest,) = stage(tmp_path, name, "manifest.json")
        resumed.append(json.loads(manifest.read_text())["metrics"]["resumed_from_step"])
    assert resumed[0] >= 4
    assert resumed[1] >= 1


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize(("sign", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_and_its_children(tmp_path: Path, sign: signal.Signals, code: int) -> None:
    write_recipe(tmp_path / "mini.yaml", RECIPE)
    running = start(tmp_path, "run", "mini.yaml")
    wait_for(lambda: stage(tmp_path, "sft", "attempts/1/progress.jsonl"))
    assert running.kill(sign) == code
    assert "spa resume" in running.err()
    assert "Traceback" not in running.err()
    assert processes_of(tmp_path) == []
    status = run_spa(tmp_path, "status", "mini")
    assert "interrupted" in status.stdout


def test_spa_judge_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    judge_inputs(tmp_path, 40)
    command = ["judge", "--policy", "policy", "--reference", "reference", "--pairs", "pairs.jsonl"]
    command += ["--max-length", "256", "--max-prompt-length", "128"]  # the sandbox's models have 256 positions
    whole = run_spa(tmp_path, *command, "--out", "whole.jsonl")
    assert whole.returncode == 0, whole.stderr
    running = start(tmp_path, *command, "--out", "out.jsonl")
    wait_for(lambda: list(tmp_path.glob("out.jsonl.spa/stages/*-candidates-*/manifest.json")))
    running.kill()
    assert not (tmp_path / "out.jsonl").exists()
    again = run_spa(tmp_path, *command, "--out", "out.jsonl")
    assert again.returncode == 0, again.stderr
    assert "done before" in again.stdout
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
