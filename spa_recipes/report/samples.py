"""Which sample answers people are shown: neither the best nor the first that come, but ones from the whole range."""

from collections.abc import Sequence
from typing import NamedTuple

from spa_recipes.data.stage_rows import SampleRow


class Shown(NamedTuple):
    """Prompts whose answers are shown, and the rule that chose them, in words."""

    prompt_ids: list[str]
    rule: str


def shown_samples(before: Sequence[SampleRow], after: Sequence[SampleRow], count: int) -> Shown:
    """Choose prompts by how much the reward of their first answer changed from one policy to another.

    The changes are cut into `count` equal parts from the smallest to the largest, and the middle of each part is taken:
    of one prompt the median change, of three those at 17, 50 and 83 %. Without rewards the first prompts are taken.

    Args:
        before, after: samples of both policies, for the same prompts in the same order.
    """
    first: dict[str, tuple[SampleRow, SampleRow]] = {}
    for old, new in zip(before, after, strict=True):
        first.setdefault(old["prompt_id"], (old, new))
    changes = {
        prompt: new["reward"] - old["reward"]
        for prompt, (old, new) in first.items()
        if old["reward"] is not None and new["reward"] is not None
    }
    if len(changes) < len(first):
        return Shown([*first][:count], "the first held-out prompts")
    ordered = sorted(changes, key=changes.__getitem__)
    count = min(count, len(ordered))
    chosen = [ordered[int((k + 0.5) * len(ordered) / count)] for k in range(count)]
    at = ", ".join(f"{(k + 0.5) / count:.0%}" for k in range(count))
    return Shown(chosen, f"held-out prompts at {at} of the changes of reward, from the worst to the best")
