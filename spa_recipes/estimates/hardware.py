"""The machine that estimates are for: the one here, or the one that a recipe says it was written for."""

import re
from typing import NamedTuple

_WORDS = {"one": 1, "two": 2, "four": 4, "eight": 8}
_STATED = re.compile(r"(?:(\d+) x )?(\d+|one|two|four|eight) GPUs? with (\d+) GB", re.IGNORECASE)


class Hardware(NamedTuple):
    """GPUs of one kind.

    Attributes:
        gpus: how many, on all machines together.
        memory: bytes of each.
        model: its name; empty where only its memory is known.
    """

    gpus: int
    memory: int
    model: str = ""


def stated_hardware(text: str) -> Hardware | None:
    """What a recipe's `hardware` says, in the form `4 GPUs with 80 GB` or `2 x 8 GPUs with 80 GB`; None in any other.

    A GPU of 80 GB has 80 GiB: its maker counts so.
    """
    found = _STATED.search(text)
    if found is None:
        return None
    machines, gpus, memory = found.groups()
    count = _WORDS.get(gpus.lower()) or int(gpus)
    return Hardware(int(machines or 1) * count, int(memory) * 2**30)
