"""What several test files share: a miniature recipe that runs in seconds, and the CLI."""

import copy
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

MINI: dict[str, Any] = {
    "name": "mini",
    "seed": 7,
    "model": {"model_name_or_path": "sandbox", "dtype": "float32", "max_length": 128, "max_prompt_length": 48},
    "data": {
        "pairs": {"type": "sandbox", "rows": 400},
        "seed_labels": 60,
        "prompts_per_iteration": [32, 48],
        "heldout": 24,
    },
    "sft": {
        "data": {"type": "sandbox", "rows": 200},
        "learning_rate": 4e-3,
        "global_batch_size": 16,
        "per_device_train_batch_size": 16,
    },
    "seed_training": {"learning_rate": 1e-4, "global_batch_size": 16, "per_device_train_batch_size": 16},
    "sampling": {"max_tokens": 32, "backend": {"type": "transformers", "batch_size": 64, "shard_size": 16}},
    "refine": {"learning_rate": 5e-5, "global_batch_size": 16, "per_device_train_batch_size": 16},
    "noise": {"threshold": {"type": "percentile", "window": 64, "min_pairs": 8}},
    "evaluation": {"max_prompts": 16, "reward": "gold"},
    "compute": {"executor": {"type": "fork"}, "cpu_threads": 1},
}
"""The quickstart in miniature: every stage kind of a run, on the sandbox."""

Spa = Callable[..., "subprocess.CompletedProcess[str]"]


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy of a nested mapping with other values in some places."""
    result = dict(base)
    for key, value in changes.items():
        inner = result.get(key)
        result[key] = merged(inner, value) if isinstance(value, dict) and isinstance(inner, dict) else value
    return result


def mini(**changes: Any) -> dict[str, Any]:
    """The miniature recipe with changes."""
    return merged(copy.deepcopy(MINI), changes)


def write_recipe(path: Path, recipe: dict[str, Any]) -> Path:
    """Write a recipe as YAML."""
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def run_spa(
    folder: Path, *arguments: str | Path, timeout: float = 500, **variables: str
) -> "subprocess.CompletedProcess[str]":
    """Run the command line in a folder, offline, without a terminal."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "NO_COLOR": "1", "COLUMNS": "200", **variables}
    return subprocess.run(
        [sys.executable, "-m", "spa_recipes.cli", *map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.fixture
def spa(tmp_path: Path) -> Spa:
    """The command line, run in the test's own folder."""

    def call(*arguments: str | Path, **variables: str) -> "subprocess.CompletedProcess[str]":
        return run_spa(tmp_path, *arguments, **variables)

    return call


class Answer(NamedTuple):
    """What a command did: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


@pytest.fixture
def spa_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """The command line in this process, in the test's own folder: quick, for many mistakes one after another."""
    from spa_recipes.cli.app import main

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


def one_error(answer: Answer, code: int) -> str:
    """The one line of a mistake; checks the exit code and that there is nothing else."""
    lines = answer.err.strip().splitlines()
    assert answer.code == code, answer
    assert len(lines) == 1, answer.err
    assert lines[0].startswith("error: ")
    assert "Traceback" not in answer.err + answer.out
    return lines[0].removeprefix("error: ")
