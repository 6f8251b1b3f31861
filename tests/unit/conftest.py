"""Fixtures of several files without a process."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def no_wait_for_the_disk() -> Iterator[None]:
    """Nobody cuts the power of these tests. That files are synced, and in which order, has tests that record calls."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def trained(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model trained for some steps."""
    from tests.kit.training import make_env, make_pairs, train_rewards  # torch: not in each process that starts pytest

    folder = tmp_path_factory.mktemp("trained")
    train_rewards(policy, make_pairs(24, reference=False), make_env(policy, folder))
    return folder / "out"


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test's own folder is the current one."""
    monkeypatch.chdir(tmp_path)
