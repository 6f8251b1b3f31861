"""Who makes which shard: a worker takes one by making a file that nobody else can make as well.

Making a file with O_EXCL is atomic on local disks, NFS from version 3 on, Lustre and GPFS. Claims belong to an attempt,
so those of an earlier one hold nobody up. There is no clock and no heartbeat: whoever sees that a worker is gone frees
its claims.
"""

import os
from contextlib import suppress
from pathlib import Path

from spa_recipes.state import atomic

CLAIMS = "claims"
"""Folder of the claims of an attempt."""


def claim(path: Path, owner: str) -> bool:
    """Take what `path` stands for; False if somebody else has it."""
    atomic.make_folder(path.parent)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w") as handle:
        handle.write(owner)
    return True


def free(attempt: Path, owner: str) -> int:
    """Free what a worker that is gone had claimed; returns how much that was.

    A claim without a name is of a worker that died (or is) between two calls of the system. If it is not this one, a
    shard is made twice, with the same content.
    """
    freed = 0
    for path in sorted((attempt / CLAIMS).rglob("*")):
        with suppress(OSError):  # its owner finished it meanwhile
            if path.is_file() and path.read_text() in ("", owner):
                path.unlink()
                freed += 1
    return freed
