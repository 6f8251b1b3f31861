"""The labels of a member: a disjoint share of the seed labels, or a bootstrap sample of them."""

import hashlib
from collections.abc import Sequence

from spa_recipes.data.rows import PairRow
from spa_recipes.errors import DataError


def part_of(rows: Sequence[PairRow], member: int, shares: int | None, seed: int) -> list[PairRow]:
    """The rows of a member, counted from 1, in their order.

    Args:
        shares: as many disjoint shares, whose sizes differ by one row at most; None draws with replacement as many rows
            as there are, the same on every machine.
        seed: of the bootstrap.

    Raises:
        DataError: the share is empty.
    """
    if shares is None:
        return [rows[i] for i in sorted(_drawn(f"{seed}:{member}:{k}", len(rows)) for k in range(len(rows)))]
    part = [*rows[member - 1 :: shares]]
    if not part:
        raise DataError(
            f"{len(rows)} seed labels leave member {member} of {shares} without any",
            where="seed_training.members.count",
            fix="lower it, or raise data.seed_labels",
        )
    return part


def _drawn(key: str, size: int) -> int:
    """A number below `size`; the excess of the first ones is below 2^-48."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % size
