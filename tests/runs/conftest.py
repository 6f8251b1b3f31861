"""The run that many files look at, made once."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from spa_recipes.recipe.schema import ForkExecutor
from spa_recipes.run.executors import Executors
from tests.kit.benchmark_world import make_world
from tests.kit.cli import run_fresh, run_spa, umask
from tests.kit.clusters import small
from tests.kit.forked import ForkingCode, ForkingPopen
from tests.kit.recipes import KEEPING, write_recipe


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the miniature has run once, in fresh interpreters, under umask 002, and has kept everything.

    Tests leave it as it is; see `home`. All processes of pytest-xdist share it.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "finished"
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "first.out").exists():
            folder.mkdir()
            write_recipe(folder / "mini.yaml", KEEPING)
            with umask(0o002):
                done = run_fresh(folder, "run", "mini.yaml")
            assert done.returncode == 0, done.stderr + done.stdout
            (folder / "first.out").write_text(done.stdout)
    return folder


@pytest.fixture(scope="module")
def home(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of that folder for a file's tests, far from it."""
    return Path(shutil.copytree(finished, tmp_path_factory.mktemp("home"), symlinks=True, dirs_exist_ok=True))


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which one process has done what the tests of clusters do on two nodes. Tests leave it as it is."""
    folder = tmp_path_factory.mktemp("alone")
    write_recipe(folder / "mini.yaml", small({"type": "fork"}))
    done = run_spa(folder, "run", "mini.yaml")
    assert done.returncode == 0, done.stderr + done.stdout
    return folder


@pytest.fixture(scope="module")
def executors() -> Iterator[Executors]:
    """What starts the stages of the jobs that a file's tests run in this process; nothing is imported anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", ForkingPopen)
        shared = Executors(ForkExecutor(type="fork"))
        yield shared
        shared.close()


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python code that a test runs as a process is a fork of this one."""
    monkeypatch.setattr(subprocess, "Popen", ForkingCode)


@pytest.fixture(scope="session")
def benchmark_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models and prompts for the tests of benchmarks; `here` copies them."""
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def here(benchmark_world: Path, tmp_path: Path) -> Path:
    """A folder of the test's own with these models and prompts in it."""
    shutil.copytree(benchmark_world, tmp_path, dirs_exist_ok=True)
    return tmp_path
