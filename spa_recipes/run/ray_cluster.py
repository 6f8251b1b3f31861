"""Ray: stages that load a model run on the nodes of a cluster, each started by a process of `ray_launch`."""

import importlib.util
import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from spa_recipes.errors import RecipeError, TryAgainError
from spa_recipes.recipe.schema import RayExecutor
from spa_recipes.run.processes import Running, Worker
from spa_recipes.state.reading import read_text

LAUNCH = "spa_recipes.run.ray_launch"
PENDING = ".pending"
"""Ending of the name of a file beside a log, which is there while its process waits for room, and says for what."""
PENDING_BYTES = 4096
CURRENT = Path("/tmp/ray/ray_current_cluster")
"""Where `ray start` notes the cluster of this machine."""
PROBE_SECONDS = 5.0
_KEY = "compute.executor.address"


def check_head(settings: RayExecutor) -> None:
    """Refuse an address at which nobody listens; Ray itself would try it for ten minutes.

    Raises:
        RecipeError: Ray is not installed, or this is no address.
        TryAgainError: nobody listens there.
    """
    if importlib.util.find_spec("ray") is None:
        raise RecipeError(
            "Ray is not installed here", where="compute.executor.type", fix="pip install 'spa-recipes[ray]'"
        )
    address = address_of(settings)
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise RecipeError(
            f"{address} is no address of a Ray cluster", where=_KEY, fix="write host:port, e.g. 10.0.0.1:6379"
        )
    try:
        socket.create_connection((host, int(port)), PROBE_SECONDS).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise TryAgainError(
            f"no Ray cluster answers at {address} ({reason})",
            where=_KEY,
            fix="start it (`ray start --head`), or correct the address",
        ) from error


def address_of(settings: RayExecutor) -> str:
    """Where the cluster is, `host:port`.

    Raises:
        TryAgainError: it is to be found, and there is none.
    """
    if settings.address != "auto":
        return settings.address
    if address := os.environ.get("RAY_ADDRESS"):
        return address
    try:
        return CURRENT.read_text().strip()
    except OSError:
        raise TryAgainError(
            "there is no Ray cluster on this machine, and RAY_ADDRESS names none",
            where=_KEY,
            fix="start one (`ray start --head`), or set the address",
        ) from None


class Tasks:
    """Starts commands on the nodes of a Ray cluster.

    Args:
        settings: of the recipe.
    """

    def __init__(self, settings: RayExecutor) -> None:
        self._settings = settings

    def slot(self, command: Sequence[str], log: Path, environment: Mapping[str, str], gpus: int) -> Running:
        """One process on whichever node has so many GPUs for it."""
        return self._launch(1, gpus, command, log, environment)

    def gang(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> Running:
        """A process on each of so many different nodes, all at once; when one ends badly, all are ended."""
        return self._launch(self._settings.nodes, self._settings.gpus_per_node, command, log, environment)

    def _launch(
        self, nodes: int, gpus: int, command: Sequence[str], log: Path, environment: Mapping[str, str]
    ) -> Running:
        pending = log.absolute().with_suffix(PENDING)
        asked = {
            "address": address_of(self._settings),
            "nodes": nodes,
            "gpus": gpus,
            "resources": self._settings.resources,
            "wait_minutes": self._settings.wait_minutes,
            "log": str(log.absolute()),
            "pending": str(pending),
        }
        command = [sys.executable, "-m", LAUNCH, json.dumps(asked), *command]
        return Task(command, log.with_stem(f"{log.stem}-ray"), environment, pending)


class Task(Worker):
    """A process on other machines, by `ray_launch`."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str], pending: Path) -> None:
        super().__init__(command, log, environment)
        self._pending = pending

    def poll(self) -> int | None:
        """See `Running`. One that is gone waits for nothing, however it ended."""
        code = super().poll()
        if code is not None:
            self._pending.unlink(missing_ok=True)
        return code

    def stop(self) -> None:
        """See `Running`."""
        super().stop()
        self._pending.unlink(missing_ok=True)


def waiting_for_room(folder: Path) -> list[str]:
    """What `spa status` says of the processes whose logs are in a folder and that wait for room, each once."""
    texts = set[str]()
    for path in folder.glob(f"*{PENDING}"):
        with suppress(OSError, ValueError):  # its process got room meanwhile
            texts.add(read_text(path, limit=PENDING_BYTES).strip())
    return [f"waits for room in the Ray cluster: {text}" for text in sorted(texts)]
