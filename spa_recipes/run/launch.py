"""`accelerate launch` for the processes of a stage, on this machine or on one of several.

    python -m spa_recipes.run.launch OPTIONS --module spa_recipes.run.worker SPEC

They meet as `rendezvous` says.
"""

import os
import sys
from argparse import Namespace

from accelerate.commands.launch import launch_command, launch_command_parser

from spa_recipes.run import rendezvous
from spa_recipes.run.lifeline import end_with_starter
from spa_recipes.run.rendezvous import BACKEND, LOOPBACK, Gang, gang_of

INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
"""Variables that name the interface on which processes that train together open their own ports."""


def meet(arguments: Namespace, gang: Gang) -> None:
    """Change the options of a launch so that its processes meet by our way.

    On one machine, nothing of it can be reached from outside.
    """
    arguments.rdzv_backend = BACKEND
    arguments.num_machines, arguments.machine_rank = gang.nodes, gang.node
    arguments.main_process_ip, arguments.main_process_port = LOOPBACK, 0  # accelerate asks for them
    arguments.same_network = False
    if gang.nodes == 1 and sys.platform == "linux":
        for name in INTERFACES:
            os.environ.setdefault(name, "lo")
    if arguments.cpu and arguments.num_processes > 1:  # with --cpu, accelerate would start one process only
        os.environ["ACCELERATE_USE_CPU"] = "true"
        arguments.cpu, arguments.multi_gpu = False, True


def main() -> None:
    """Launch."""
    end_with_starter()
    rendezvous.register()
    arguments = launch_command_parser().parse_args()
    meet(arguments, gang_of(os.environ))
    launch_command(arguments)


if __name__ == "__main__":
    main()
