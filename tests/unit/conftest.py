"""Fixtures of several files without a process."""

from pathlib import Path

import pytest

from tests.kit.training import make_env, make_pairs, train_rewards


@pytest.fixture(scope="session")
def trained(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model trained for some steps."""
    folder = tmp_path_factory.mktemp("trained")
    train_rewards(policy, make_pairs(24, reference=False), make_env(policy, folder))
    return folder / "out"


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test's own folder is the current one."""
    monkeypatch.chdir(tmp_path)
