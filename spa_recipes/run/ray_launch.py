"""Is to a Ray cluster what `srun` is to Slurm: runs a command on one node or on several, and ends with it.

    python -m spa_recipes.run.ray_launch ASKED COMMAND...

`ASKED` is `Asked` as JSON. Only this process and its like call `ray.init`: it takes over the handler of SIGTERM, prints
what it likes, and tries a head that is not there for ten minutes.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from spa_recipes.run.lifeline import end_with_starter

POLL_SECONDS = 0.3
QUICK_SECONDS = 3.0
"""Seconds within which a cluster that has room gives it; a longer wait is told."""
PASSED_ON = (
    "SPA_", "PYTHON", "OMP_", "MKL_", "TOKENIZERS_", "HF_", "HUGGINGFACE_", "TORCH_", "NCCL_", "GLOO_", "VLLM_",
    "WANDB_", "MLFLOW_", "TRACKIO_", "XDG_",
)  # fmt: skip
"""Beginnings of the names of variables that a process on a node gets from here. It keeps its own for all others."""


class Asked(NamedTuple):
    """What a command needs.

    Attributes:
        address: of the cluster.
        nodes: how many nodes run the command, all at once or none.
        gpus: GPUs on each.
        resources: custom ones on each.
        wait_minutes: how long to wait for room.
        log: gets the output of the command on the first node; the others have logs beside it.
        pending: a file that is there while it waits for room.
    """

    address: str
    nodes: int
    gpus: int
    resources: dict[str, float]
    wait_minutes: float
    log: str
    pending: str


class Node:
    """An actor: it is on a node, and has the command as its child, which ends with it by the end of its input."""

    def __init__(self, command: list[str], folder: str, log: str) -> None:
        self._command, self._folder, self._log = command, folder, log
        self._process: subprocess.Popen[bytes] | None = None

    def address(self) -> str:
        """The node's address."""
        import ray

        return str(ray.util.get_node_ip_address())

    def start(self, environment: dict[str, str]) -> None:
        """Start the command."""
        try:
            command = self._command
            with Path(self._log).open("ab") as output:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    cwd=self._folder if Path(self._folder).is_dir() else None,
                    env={**os.environ, **environment},
                )
        except OSError as error:  # as text: the other side need not know the class
            raise RuntimeError(f"cannot be started on {self.address()}: {error}") from None

    def poll(self) -> int | None:
        """Exit code, None while it runs."""
        assert self._process is not None
        return self._process.poll()


def run(asked: Asked, command: list[str]) -> int:
    """Run the command on all nodes; the exit code of the first that ends badly, else 0."""
    import ray
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    ray.init(address=asked.address, log_to_driver=False, logging_level="error", configure_logging=False)
    signal.signal(signal.SIGTERM, _end)
    bundle = {"CPU": 1.0, **({"GPU": float(asked.gpus)} if asked.gpus else {}), **asked.resources}
    group = placement_group([bundle] * asked.nodes, strategy="STRICT_SPREAD" if asked.nodes > 1 else "PACK")
    actors = []
    try:
        if not _has_room(group, asked, bundle):
            what = f"{asked.nodes} x ({_words(bundle)})"
            print(f"ray: error: no room for {what} within {asked.wait_minutes:g} minutes", flush=True)
            return 75
        for number in range(asked.nodes):
            place = PlacementGroupSchedulingStrategy(group, number)
            log = Path(asked.log)
            own_log = log if number == 0 else log.with_stem(f"{log.stem}-node-{number}")
            options = {"num_cpus": 1, "num_gpus": asked.gpus, "resources": asked.resources or None}
            remote = ray.remote(Node).options(scheduling_strategy=place, **options)
            actors.append(remote.remote(command, str(Path.cwd()), str(own_log)))
        _start(actors)
        return _wait(actors)
    except ray.exceptions.RayError as error:
        print(f"ray: error: {' '.join(str(error).split())}", flush=True)
        return 1
    finally:
        for actor in actors:
            with contextlib.suppress(Exception):  # its node may be gone
                ray.kill(actor)
        ray.util.remove_placement_group(group)
        ray.shutdown()


def _has_room(group: Any, asked: Asked, bundle: dict[str, float]) -> bool:
    """Wait for room; while there is none, a file beside the log says for what, which `spa status` shows."""
    import ray

    if group.wait(QUICK_SECONDS):
        return True
    free = {name: amount for name, amount in ray.available_resources().items() if name in bundle}
    said = f"for {asked.nodes} x ({_words(bundle)}), of which {_words(free) or 'none'} are free"
    Path(asked.pending).write_text(f"{said}\n")
    try:
        return bool(group.wait(asked.wait_minutes * 60))
    finally:
        Path(asked.pending).unlink(missing_ok=True)


def _words(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in resources.items())


def _start(actors: list[Any]) -> None:
    import ray

    given = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
    first = ray.get(actors[0].address.remote())
    own = [{"SPA_NODE": str(node), "SPA_ADDRESS": first} for node in range(len(actors))]
    ray.get([actor.start.remote(given | mine) for actor, mine in zip(actors, own, strict=True)])


def _wait(actors: list[Any]) -> int:
    """Until all commands have ended, or one badly."""
    import ray

    while True:
        codes = ray.get([actor.poll.remote() for actor in actors])
        bad = next((code for code in codes if code), None)
        if bad is not None:
            return int(bad) if bad > 0 else 128 - int(bad)
        if None not in codes:
            return 0
        time.sleep(POLL_SECONDS)


def _end(_number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + signal.SIGTERM)


def main() -> None:
    """Run what the command line says."""
    end_with_starter()
    signal.signal(signal.SIGTERM, _end)
    sys.exit(run(Asked(**json.loads(sys.argv[1])), sys.argv[2:]))


if __name__ == "__main__":
    main()
