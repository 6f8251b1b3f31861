"""Agreement of two series of labels. It needs no torch, so that light commands can tell it."""

from collections import Counter
from collections.abc import Hashable, Sequence


def cohens_kappa(both: Sequence[tuple[Hashable, Hashable]]) -> float | None:
    """Cohen's kappa (1960): (p_o - p_e) / (1 - p_e), with the share p_o of equal labels and p_e, that of chance.

    Args:
        both: for each item the two labels.

    Returns:
        1 for equal series, 0 for what chance gives; None where chance alone gives equal labels, or without items.
    """
    if not both:
        return None
    seen = sum(one == other for one, other in both) / len(both)
    first, second = Counter(one for one, _ in both), Counter(other for _, other in both)
    chance = sum(first[label] * second[label] for label in first) / len(both) ** 2
    return None if chance == 1.0 else (seen - chance) / (1.0 - chance)
