"""Small runs on a cluster of this machine, watched and disturbed from outside."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.kit.cli import Answer, environment_with
from tests.kit.processes import wait_for
from tests.kit.recipes import merged, mini
from tests.kit.runs import output

SMALL = mini(
    data={"prompts_per_iteration": [48]},
    sft={"save_steps": 2, "per_device_train_batch_size": 8},
    seed_training={"per_device_train_batch_size": 8},
    refine={"per_device_train_batch_size": 8},
    evaluation={"enabled": False},
    sampling={"backend": {"shard_size": 8}},
)
"""The miniature recipe with batches that split over two processes, and with shards for several workers.

One process sums up two batches before each step, as two processes do, so their results are the same to the bit.
"""


def small(executor: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """That recipe on an executor."""
    return merged(merged(SMALL, {"compute": {"executor": executor}}), changes)


def spa(folder: Path, *arguments: str) -> Answer:
    """The command line in a folder, in a fresh interpreter."""
    command = [sys.executable, "-m", "spa_recipes.cli", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment_with(), capture_output=True, text=True, check=False)
    return Answer(done.returncode, done.stdout, done.stderr)


def stage_files(folder: Path, stage: str, pattern: str) -> list[Path]:
    """Files of a stage of the run `mini` in a folder."""
    return sorted((folder / "runs" / "mini" / "stages").glob(f"[0-9][0-9]-{stage}-????????/{pattern}"))


def losses(folder: Path, stage: str) -> list[float]:
    """The losses that a stage of the run `mini` in a folder has logged."""
    lines = output(folder, stage, "model/training_log.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def check_equal(there: Path, here: Path) -> None:
    """A whole run elsewhere is the run here: generated rows and labels are the same, weights are within rounding."""
    from tests.kit.training import same_weights

    plans = [json.loads((folder / "runs" / "mini" / "plan.json").read_text()) for folder in (there, here)]
    assert [stage["key"] for stage in plans[0]] == [stage["key"] for stage in plans[1]]
    for stage in ("sft", "seed", "refine-1"):
        assert losses(there, stage) == pytest.approx(losses(here, stage), rel=1e-5)
        ours, theirs = (output(folder, stage, "model") for folder in (there, here))
        assert same_weights(ours, theirs, tolerance=1e-5), stage
    assert sampled(there) == sampled(here)
    labels = [_labels(folder) for folder in (there, here)]
    assert len(labels[0]) == 48
    assert labels[0] == labels[1]


def sampled(folder: Path) -> bytes:
    """The generated rows of the first iteration."""
    return output(folder, "generate-1", "completions.parquet").read_bytes()


def _labels(folder: Path) -> list[tuple[object, ...]]:
    rows = map(json.loads, output(folder, "judge-1", "judgments.jsonl").read_text().splitlines())
    return [tuple(row[name] for name in ("prompt_id", "chosen", "rejected", "tied")) for row in rows]


def begin_again_from(folder: Path, stage: str) -> None:
    """Take out of the run `mini` in a folder a stage and all that come after it, as if it had been stopped there."""
    stages = folder / "runs" / "mini" / "stages"
    (first,) = stages.glob(f"[0-9][0-9]-{stage}-????????")
    for path in stages.iterdir():
        if path.name >= first.name:
            shutil.rmtree(path)
    shutil.rmtree(folder / "runs" / "mini" / "final")


def writers_of(log: Path) -> list[int]:
    """Processes whose output goes to a file, but for `srun`, which passes on another's (Linux)."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "fd" / "1").readlink() == log.resolve() and (entry / "cmdline").read_bytes()[:4] != b"srun":
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def signal_writer(folder: Path, stage: str, log: Callable[[], str], when: Callable[[], object], sign: int) -> None:
    """Send a signal to the process of a stage that writes a log, at a moment."""
    wait_for(when, 900)
    (path,) = stage_files(folder, stage, f"attempts/1/{log()}")
    pids = writers_of(path)
    assert pids, f"nobody writes {path}"
    for pid in pids:
        os.kill(pid, sign)


def signal_rank(folder: Path, stage: str, sign: int) -> None:
    """Send a signal to the second process of a training once there is a checkpoint."""
    checkpoint = "work/checkpoints/checkpoint-2/spa_checkpoint.json"
    signal_writer(folder, stage, lambda: "worker-1.log", lambda: stage_files(folder, stage, checkpoint), sign)


def check_goes_on(folder: Path, stage: str) -> None:
    """The second attempt of a training went on from a checkpoint of the first."""
    assert len(stage_files(folder, stage, "attempts/*")) == 2
    (progress,) = stage_files(folder, stage, "attempts/2/progress.jsonl")
    steps = [line["done"] for line in map(json.loads, progress.read_text().splitlines()) if line.get("unit") == "steps"]
    assert steps[0] > 1


def claims(folder: Path) -> list[Path]:
    """Shards of the first iteration's answers that a worker has at the moment."""
    return stage_files(folder, "generate-1", "attempts/1/claims/*/*.claim")


def claimants(folder: Path) -> list[int]:
    """Workers that have a shard of the first iteration's answers at the moment."""
    found = []
    for claim in claims(folder):
        with suppress(OSError):  # it may have finished meanwhile
            if owner := claim.read_text():
                found += writers_of(claim.parents[2] / f"worker-{owner}.log")
    return found


def kill_claimant(folder: Path) -> None:
    """Kill the first worker that has taken a shard of answers, before it has its model."""
    killed: list[int] = []

    def has_shard() -> bool:
        for pid in claimants(folder):
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
        return bool(killed)

    wait_for(has_shard, 900)


@contextmanager
def standing_still(folder: Path, node: str) -> Iterator[None]:
    """Wait until a worker on a node has a shard of answers; it and those elsewhere that have one stand still.

    Args:
        node: its name in Slurm; in Ray, the number of its process.
    """
    stopped = set[int]()

    def has_shard() -> bool:
        for pid in set(claimants(folder)) - stopped:
            os.kill(pid, signal.SIGSTOP)
            stopped.add(pid)
        return any(node in _nodes_of(pid) for pid in stopped)

    wait_for(has_shard, 600)
    yield
    for pid in stopped:
        with suppress(ProcessLookupError):  # its node is down
            os.kill(pid, signal.SIGCONT)


def _nodes_of(pid: int) -> set[str]:
    variables = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    named = dict(variable.split("=", 1) for variable in variables if "=" in variable)
    return {named.get("SLURMD_NODENAME", ""), named.get("RAY_RAYLET_PID", "")}


def check_shard_freed(folder: Path) -> None:
    """What the worker had that was killed was taken by another, in the same attempt."""
    assert len(stage_files(folder, "generate-1", "attempts/*")) == 1
    (notices,) = stage_files(folder, "generate-1", "attempts/1/progress-pool.jsonl")
    assert re.search(r"worker pool-\d is gone .* [1-9]\d* of its shards are free again", notices.read_text())
    assert "another begins in its place" in notices.read_text()
    assert not stage_files(folder, "generate-1", "attempts/1/draft-*")


def check_rehearsal(folder: Path, said: str, *more: str) -> None:
    """A rehearsal went through every stage, and measured each process of those that were shared out, and of `more`."""
    assert "every stage went through" in said, said
    assert "answer 1, as the model sees it" in said
    stages = folder / "runs" / "rehearsals" / "mini" / "stages"
    for stage in ("sft", "seed", "generate-1", "score-1-reference", "refine-1", *more):
        assert f"\n{stage} " in said
        assert len(list(stages.glob(f"[0-9][0-9]-{stage}-????????/attempts/1/usage-*.json"))) >= 2, stage
    assert not (folder / "runs" / "mini").exists()


def workers_in(folder: Path) -> list[int]:
    """Processes of stages of a run that lies in a folder, wherever they work (Linux)."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(folder) in command and "spa_recipes.run" in command:
            found.append(int(entry.name))
    return found
