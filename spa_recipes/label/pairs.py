"""A pair of answers that a person compares."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from spa_recipes.data.rows import Message


class Judged(NamedTuple):
    """What a judge says of a pair: the index of the answer that it prefers, and with which probability."""

    better: int
    p: float


class Pair(NamedTuple):
    """Two different answers to a prompt, in the order in which they were sampled.

    Attributes:
        id: names prompt and answers by their content.
        judged: hidden from the person.
    """

    id: str
    prompt: list[Message]
    answers: tuple[str, str]
    judged: Judged | None = None


class Source(NamedTuple):
    """The pairs of a session, in the order in which they are shown.

    Attributes:
        origin: where they come from; it stands in each row of the labels file.
        dropped: pairs that were left out since their answers are equal or one is empty.
        total: pairs that there are, of which `pairs` may be some.
    """

    pairs: list[Pair]
    origin: dict[str, Any]
    dropped: int
    total: int


def pair_of(prompt: list[Message], answers: tuple[str, str], judged: Judged | None = None) -> Pair:
    """A pair with its name."""
    text = json.dumps([prompt, answers], sort_keys=True)
    return Pair(hashlib.sha256(text.encode()).hexdigest()[:16], prompt, answers, judged)


def comparable(pairs: Iterable[Pair]) -> list[Pair]:
    """The distinct pairs that a person can choose from: their answers differ, and none is empty."""
    usable = (pair for pair in pairs if len({*pair.answers}) == 2 and all(map(str.strip, pair.answers)))
    return [*{pair.id: pair for pair in usable}.values()]
