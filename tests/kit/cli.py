"""The command line as a test calls it, and what it answers."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

Spa = Callable[..., "subprocess.CompletedProcess[str]"]


def run_spa(folder: Path, *arguments: str | Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run the command line in a folder, offline, without a terminal."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "NO_COLOR": "1", "COLUMNS": "200", **variables}
    return subprocess.run(
        [sys.executable, "-m", "spa_recipes.cli", *map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )


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


HEAVY = ("torch", "transformers", "trl", "vllm", "datasets", "openai")
