"""Where the launchers of one training meet, each of which starts the processes of its machine.

torch's launchers have their processes meet at a store that listens on every interface, at port 29500. Whoever reaches
that port can read and change what is in it, and a second run finds it taken. Here the first launcher opens the store on
one address, at a port that the system chooses: on one machine on the loopback interface; on several at the address by
which the others reach it, which they read from a file in the folder that all of them share.
"""

import os
import socket
import subprocess
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)

from spa_recipes.errors import TryAgainError
from spa_recipes.state import atomic
from spa_recipes.state.patience import look_again
from spa_recipes.state.reading import read_json

LOOPBACK = "127.0.0.1"
BACKEND = "spa"
TIMEOUT = timedelta(minutes=15)
POLL_SECONDS = 0.2
NODES, NODE, ADDRESS, MEETING = "SPA_NODES", "SPA_NODE", "SPA_ADDRESS", "SPA_MEETING"
"""Environment of a launcher that is one of several: how many there are, which one this is, by which address the others
reach it, and the file that says where they meet. Slurm's own variables say the second and third, too."""


class Gang(NamedTuple):
    """Launchers of one training.

    Attributes:
        nodes: how many there are.
        node: number of this one.
        meeting: the file that says where they meet; None for a launcher that is alone.
    """

    nodes: int = 1
    node: int = 0
    meeting: Path | None = None


def gang_of(environment: Mapping[str, str]) -> Gang:
    """The launchers that this one is one of."""
    if NODES not in environment:
        return Gang()
    node = environment.get(NODE) or environment["SLURM_NODEID"]
    return Gang(int(environment[NODES]), int(node), Path(environment[MEETING]))


def own_address(environment: Mapping[str, str]) -> str:
    """By which address the other machines reach this one."""
    if ADDRESS in environment:
        return environment[ADDRESS]
    name = environment.get("SLURMD_NODENAME", socket.gethostname())
    command = ["scontrol", "show", "node", "--oneliner", name]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    address = next((word.partition("=")[2] for word in said.split() if word.startswith("NodeAddr=")), name)
    return socket.gethostbyname(address)


class Rendezvous(RendezvousHandler):
    """The meeting of the launchers; all processes of the training use the store of the first one."""

    def __init__(self, run_id: str, gang: Gang) -> None:
        self._run_id, self._gang = run_id, gang
        if gang.node == 0:
            self._address = LOOPBACK if gang.meeting is None else own_address(os.environ)
            listener = socket.create_server((self._address, 0))
            self._port = listener.getsockname()[1]
            self._store = TCPStore(
                self._address,
                self._port,
                is_master=True,
                timeout=TIMEOUT,
                master_listen_fd=listener.detach(),
                wait_for_workers=False,
            )
            if gang.meeting is not None:
                atomic.write_json(gang.meeting, {"address": self._address, "port": self._port})
        else:
            assert gang.meeting is not None
            self._address, self._port = _written(gang.meeting)
            self._store = TCPStore(self._address, self._port, is_master=False, timeout=TIMEOUT)

    @property
    def use_agent_store(self) -> bool:
        """The processes use the store of the launchers and open none."""
        return True

    def get_backend(self) -> str:
        """Name of this way to meet."""
        return BACKEND

    def get_run_id(self) -> str:
        """Name of the launch."""
        return self._run_id

    def next_rendezvous(self) -> RendezvousInfo:
        """The store, which launcher this is, and how many there are."""
        store = PrefixStore(self._run_id, self._store)
        return RendezvousInfo(store, self._gang.node, self._gang.nodes, RendezvousStoreInfo(self._address, self._port))

    def is_closed(self) -> bool:
        """Nobody closes it."""
        return False

    def set_closed(self) -> None:
        """It ends with this process."""

    def num_nodes_waiting(self) -> int:
        """No other launcher joins."""
        return 0

    def shutdown(self) -> bool:
        """It ends with this process."""
        return True


def register() -> None:
    """Let torch's launcher know this way to meet, under the name `BACKEND`."""
    rendezvous_handler_registry.register(BACKEND, _rendezvous)


def _rendezvous(parameters: RendezvousParameters) -> RendezvousHandler:
    return Rendezvous(parameters.run_id, gang_of(os.environ))


def _written(meeting: Path) -> tuple[str, int]:
    """The address and port that the first launcher wrote.

    Raises:
        TryAgainError: it writes none.
    """
    end = time.monotonic() + TIMEOUT.total_seconds()
    while time.monotonic() < end:
        look_again(meeting.parent)
        if meeting.exists():
            found = read_json(meeting)
            return found["address"], found["port"]
        time.sleep(POLL_SECONDS)
    raise TryAgainError(
        f"the first machine of the training does not say where to meet ({TIMEOUT})",
        where=str(meeting),
        fix="see its log",
    )
