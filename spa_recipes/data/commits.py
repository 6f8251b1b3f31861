"""Which commit of a repository on the Hub is meant by a branch or tag: these move, a commit does not."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from spa_recipes.data.hub import MAIN, Repository, ask, cached_commit, is_offline, keep_commit

Find = Callable[[Repository, str, "str | None"], "str | None"]
"""Finds the commit of a branch or tag; None where nobody can tell."""


class Commits:
    """The commits that a run reads: each branch or tag is looked up once.

    Args:
        known: those that need no look, by `place_of`.
        find: looks up the others; by default nobody does, and a branch or tag stays what it is.

    Attributes:
        kept: those that somebody wanted.
    """

    def __init__(self, known: Mapping[str, str] | None = None, find: Find | None = None) -> None:
        self.kept: dict[str, str] = {}
        self._known, self._find = known or {}, find

    def of(self, kind: Repository, name: str, revision: str | None) -> str | None:
        """What is read of a repository: a commit, or `revision` where nobody can tell which one that is.

        Raises:
            DataError, TryAgainError: the Hub was asked, and does not give it.
        """
        if is_commit(revision):
            return revision
        place = place_of(kind, name, revision)
        if place not in self.kept:
            commit = self._known.get(place)
            if commit is None and self._find is not None:
                commit = self._find(kind, name, revision)
            if commit is None:
                return revision
            self.kept[place] = commit
        return self.kept[place]


def place_of(kind: Repository, name: str, revision: str | None) -> str:
    """A branch or tag of a repository, in words: `models/org/name@main`."""
    return f"{kind}s/{name}@{revision or MAIN}"


def is_commit(revision: str | None) -> bool:
    """Whether a revision can be nothing else than a commit."""
    return revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision) is not None


def commit_of(kind: Repository, name: str, revision: str | None) -> str | None:
    """The commit that a branch or tag is now, by the Hub; by its cache where the environment forbids the network.

    Raises:
        DataError, TryAgainError: the Hub does not give it.
    """
    if is_offline():
        return cached_commit(kind, name, revision)
    from huggingface_hub import HfApi

    info = HfApi().model_info if kind == "model" else HfApi().dataset_info
    commit: str | None = ask(kind, name, lambda: info(name, revision=revision)).sha
    if commit is not None:
        keep_commit(kind, name, revision, commit)
    return commit
