"""Small runs on a cluster of this machine, watched and disturbed from outside."""

import json
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.kit.processes import wait_for
from tests.kit.recipes import merged, mini

SMALL = mini(
    data={"prompts_per_iteration": [48]},
    sft={"save_steps": 2, "per_device_train_batch_size": 8},
    seed_training={"per_device_train_batch_size": 8},
    refine={"per_device_train_batch_size": 8},
    evaluation={"enabled": False},
    sampling={"backend": {"shard_size": 8}},
)
"""The miniature recipe with batches that split over two processes, and with shards for several workers."""


def small(executor: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """That recipe on an executor."""
    return merged(merged(SMALL, {"compute": {"executor": executor}}), changes)


def stage_files(folder: Path, stage: str, pattern: str) -> list[Path]:
    """Files of a stage of the run `mini` in a folder."""
    return sorted((folder / "runs" / "mini" / "stages").glob(f"[0-9][0-9]-{stage}-????????/{pattern}"))


def losses(folder: Path, stage: str) -> list[float]:
    """The losses that a stage of the run `mini` in a folder has logged."""
    (path,) = stage_files(folder, stage, "output/model/training_log.jsonl")
    return [json.loads(line)["loss"] for line in path.read_text().splitlines()]


def writers_of(log: Path) -> list[int]:
    """Processes whose output goes to a file (Linux)."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "fd" / "1").readlink() == log.resolve():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def kill_writer(folder: Path, stage: str, log: Callable[[], str], when: Callable[[], object]) -> None:
    """Kill the process of a stage that writes a log, at a moment."""
    wait_for(when, 900)
    (path,) = stage_files(folder, stage, f"attempts/1/{log()}")
    pids = writers_of(path)
    assert pids, f"nobody writes {path}"
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def kill_rank(folder: Path, stage: str) -> None:
    """Kill the second process of a training once there is a checkpoint."""
    checkpoint = "work/checkpoints/checkpoint-2/spa_checkpoint.json"
    kill_writer(folder, stage, lambda: "worker-1.log", lambda: stage_files(folder, stage, checkpoint))


def kill_claimant(folder: Path, stage: str) -> str:
    """Kill the first worker of a pool that has taken a shard, before it has its model; returns its name."""
    owners: list[str] = []

    def has_claimed() -> bool:
        for claim in stage_files(folder, stage, "attempts/1/claims/*/*.claim"):
            with suppress(OSError):  # it may have finished meanwhile
                owners.extend(filter(None, [claim.read_text()]))
        return bool(owners)

    kill_writer(folder, stage, lambda: f"worker-{owners[0]}.log", has_claimed)
    return owners[0]


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
