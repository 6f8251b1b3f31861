"""The command line as a test calls it, and what it answers."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.kit.forked import ROOT, Command

HEAVY = ("torch", "transformers", "trl", "vllm", "datasets", "openai")
Spa = Callable[..., "subprocess.CompletedProcess[str]"]


def run_spa(folder: Path, *arguments: str | Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run the command line in a folder, offline, without a terminal, and without waiting for imports."""
    if sys.platform != "linux":
        return run_fresh(folder, *arguments, **variables)
    command = start(folder, *arguments, **variables)
    return subprocess.CompletedProcess(["spa", *map(str, arguments)], command.wait(), command.out(), command.err())


def run_python(folder: Path, code: str, *arguments: str | Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run Python code in a process of its own, offline, and without waiting for imports."""
    if sys.platform != "linux":
        return subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            cwd=folder, env={**environment_with(**variables), "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        )  # fmt: skip
    command = Command(folder, list(map(str, arguments)), environment_with(**variables), code)
    return subprocess.CompletedProcess(["python"], command.wait(), command.out(), command.err())


def run_fresh(folder: Path, *arguments: str | Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    """The same in a fresh interpreter, which imports everything itself."""
    return subprocess.run(
        [sys.executable, "-m", "spa_recipes.cli", *map(str, arguments)],
        cwd=folder,
        env=environment_with(**variables),
        capture_output=True,
        text=True,
    )


def start(folder: Path, *arguments: str | Path, **variables: str) -> Command:
    """Start the command line as `run_spa` does."""
    return Command(folder, list(map(str, arguments)), environment_with(**variables))


def environment_with(**variables: str) -> dict[str, str]:
    """The environment of this process, offline and without a terminal, with variables of a test's own."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "NO_COLOR": "1", "COLUMNS": "200", **variables}


class Answer(NamedTuple):
    """What a command did: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


def one_error(answer: Answer, code: int) -> str:
    """The one line of a mistake; checks the exit code and that there is nothing else."""
    lines = answer.err.strip().splitlines()
    assert answer.code == code, answer
    assert len(lines) == 1, answer.err
    assert lines[0].startswith("error: ")
    assert "Traceback" not in answer.err + answer.out
    return lines[0].removeprefix("error: ")


@contextmanager
def umask(value: int) -> Iterator[None]:
    """Have another umask for a while; commands that are started then have it, too."""
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


def imported_by(
    folder: Path, *arguments: str, among: Sequence[str] = HEAVY
) -> tuple["subprocess.CompletedProcess[str]", list[str]]:
    """Run a command in a fresh interpreter; returns what it did, and those of the libraries that it has imported."""
    code = f"""
import atexit, sys
atexit.register(lambda: print("imported", *[name for name in {among!r} if name in sys.modules]))
sys.argv = ["spa", *{arguments!r}]
from spa_recipes.cli.app import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    return done, done.stdout.splitlines()[-1].split()[1:]
