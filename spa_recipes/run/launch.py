"""`accelerate launch` for the processes of a stage.

    python -m spa_recipes.run.launch OPTIONS --module spa_recipes.run.worker SPEC

torch's launcher has its processes meet at a store that listens on every interface of the machine, at port 29500.
Whoever reaches that port can read and change what is in it, and a second run finds it taken. On one machine, the store
is opened here instead: on the loopback interface, at a port that the system chooses. Several machines meet where the
user's accelerate configuration says.
"""

import os
import socket
import sys
from argparse import Namespace
from datetime import timedelta
from pathlib import Path

from accelerate.commands.config.config_args import default_config_file, load_config_from_file
from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)

from spa_recipes.run.lifeline import end_with_starter

LOOPBACK = "127.0.0.1"
BACKEND = "spa-loopback"
TIMEOUT = timedelta(minutes=15)
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
"""Variables that name the interface on which processes that train together open their own ports."""


class LoopbackRendezvous(RendezvousHandler):
    """Where the processes of one launch on one machine meet."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        listener = socket.create_server((LOOPBACK, 0))
        self._port = listener.getsockname()[1]
        self._store = TCPStore(
            LOOPBACK,
            self._port,
            is_master=True,
            timeout=TIMEOUT,
            master_listen_fd=listener.detach(),
            wait_for_workers=False,
        )

    @property
    def use_agent_store(self) -> bool:
        """The processes use the store of this one and open none."""
        return True

    def get_backend(self) -> str:
        """Name of this way to meet."""
        return BACKEND

    def get_run_id(self) -> str:
        """Name of the launch."""
        return self._run_id

    def next_rendezvous(self) -> RendezvousInfo:
        """The store, and the one launcher there is."""
        store = PrefixStore(self._run_id, self._store)
        return RendezvousInfo(store, 0, 1, RendezvousStoreInfo(LOOPBACK, self._port))

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


def _rendezvous(parameters: RendezvousParameters) -> RendezvousHandler:
    return LoopbackRendezvous(parameters.run_id)


def machines(arguments: Namespace) -> int:
    """Over how many machines a launch goes: what the options, or the user's accelerate configuration, say."""
    if arguments.num_machines is not None:
        return int(arguments.num_machines)
    if arguments.config_file is None and (arguments.cpu or not Path(default_config_file).is_file()):
        return 1
    return int(getattr(load_config_from_file(arguments.config_file), "num_machines", 1))


def stay_on_this_machine(arguments: Namespace) -> None:
    """Change the options of a launch on one machine so that nothing of it can be reached from outside."""
    arguments.rdzv_backend = BACKEND
    arguments.main_process_ip, arguments.main_process_port = LOOPBACK, 0
    if sys.platform == "linux":
        for name in INTERFACES:
            os.environ.setdefault(name, "lo")
    if arguments.cpu and arguments.num_processes > 1:  # with --cpu, accelerate would start one process only
        os.environ["ACCELERATE_USE_CPU"] = "true"
        arguments.cpu, arguments.multi_gpu = False, True


def main() -> None:
    """Launch."""
    end_with_starter()
    rendezvous_handler_registry.register(BACKEND, _rendezvous)
    arguments = launch_command_parser().parse_args()
    if machines(arguments) == 1:
        stay_on_this_machine(arguments)
    launch_command(arguments)


if __name__ == "__main__":
    main()
