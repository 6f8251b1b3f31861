"""Fixtures that several files share; all else that they share is in tests/kit."""

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.cli import Answer, Spa, run_spa
from tests.kit.forked import PLACE, ForkingPopen, share_server
from tests.kit.synced import no_sync


def pytest_configure() -> None:
    """All processes of pytest-xdist share one server of commands, too."""
    if PLACE not in os.environ:
        share_server()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Import all tests without a search for garbage: what is imported stays, and there is more and more of it."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.fixture(scope="session", autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The user's own state folder, which the tests and their processes do not share with the person who runs them.

    All processes of pytest-xdist share it, as they share the run that is made once.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "state"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder))
        yield folder / "spa-recipes"


@pytest.fixture(scope="session", autouse=True)
def no_wait_for_the_disk() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", no_sync)
        yield


@pytest.fixture(scope="module", autouse=True)
def searched_for_garbage_once() -> None:
    """What is there before a file's tests, imported libraries above all, is left out of all later searches for garbage.

    Each training asks for such a search, which takes a third of a second once torch and trl are imported.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def spa(tmp_path: Path) -> Spa:
    """The command line, run in the test's own folder."""

    def call(*arguments: str | Path, **variables: str) -> "subprocess.CompletedProcess[str]":
        return run_spa(tmp_path, *arguments, **variables)

    return call


@pytest.fixture
def spa_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """The command line in this process, in the test's own folder: quick, for many mistakes one after another."""
    from spa_recipes.cli.app import main

    monkeypatch.setattr(subprocess, "Popen", ForkingPopen)
    handlers = {sign: signal.getsignal(sign) for sign in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str | Path) -> Answer:
        monkeypatch.setattr(sys, "argv", ["spa", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        return Answer(code, *capsys.readouterr())

    yield call
    for sign, handler in handlers.items():
        signal.signal(sign, handler)


@pytest.fixture(scope="session")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with random weights. Tests leave it as it is."""
    from tests.kit.training import make_model

    return make_model(tmp_path_factory.mktemp("models") / "policy")


@pytest.fixture(scope="session")
def trained(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model trained for some steps."""
    from tests.kit.training import make_env, make_pairs, train_rewards  # torch: not in each process that starts pytest

    folder = tmp_path_factory.mktemp("trained")
    train_rewards(policy, make_pairs(24, reference=False), make_env(policy, folder))
    return folder / "out"
