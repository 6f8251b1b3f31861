"""A stage that ends badly, however it ends, is one line with the documented exit code."""

import sys
from pathlib import Path
from typing import Any

import pytest

from spa_recipes.errors import EXIT_CODES
from spa_recipes.plan import compile_plan
from spa_recipes.recipe.schema import LocalExecutor, Recipe
from spa_recipes.run.executors import Executors
from spa_recipes.run.processes import Worker
from spa_recipes.run.rundir import RunDir
from spa_recipes.run.runner import execute
from spa_recipes.state.digests import DigestMemo
from tests.kit.recipes import mini

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="uses system calls of Linux")


BAD_END = """
import os, signal, sys, types
import spa_recipes.run.worker as worker
from spa_recipes.plan import KINDS
def run(context):
    print("the last words", flush=True)
    {body}
sys.modules["spa_recipes.stages.bad"] = types.SimpleNamespace(run=run)
KINDS["data"] = KINDS["data"]._replace(module="bad")
worker.main()
"""


class BadEnd(Executors):
    """Starts real processes whose stage ends in a given way."""

    def __init__(self, body: str) -> None:
        super().__init__(LocalExecutor())
        self._body = body

    def start(self, kind: str, spec: Path, log: Path, vllm: Any = None) -> Worker:
        return Worker([sys.executable, "-c", BAD_END.format(body=self._body), str(spec)], log)


class Silent:
    """A reporter that keeps silent."""

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **facts: None


@LINUX
@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", 1, ["killed by signal 11 (SIGSEGV)", "in run", "worker.log"]),
        ("os._exit(3)", 1, ["exit code 3", "the last words", "worker.log"]),
        ("os.kill(os.getpid(), signal.SIGKILL)", 75, ["kernel", "memory runs out", "the last words", "worker.log"]),
        ("raise MemoryError", 75, ["out of memory", "fewer rows"]),
        ("raise RuntimeError('CUDA out of memory. Tried to allocate')", 75, ["out of memory"]),
        ("raise OSError(28, 'No space left on device', '/big/file')", 75, ["disk is full", "/big/file", "are free"]),
        ("raise RuntimeError('I/O error: No space left on device (os error 28)')", 75, ["disk is full"]),
        ("raise ValueError('something else')", 1, ["ValueError: something else", "worker.log"]),
    ],
)
def test_a_bad_end_is_one_line(tmp_path: Path, body: str, code: int, words: list[str]) -> None:
    plan = compile_plan(Recipe.model_validate(mini()), DigestMemo(tmp_path / "memo"))
    run = RunDir(tmp_path / "mini")
    with pytest.raises(EXIT_CODES[code], match=r"\A[^\n]*\Z") as caught:
        execute(plan, run, "", until="data", accept=False, reporter=Silent(), executors=BadEnd(body))
    assert caught.value.exit_code == code
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "run stopped" in (run.path / "events.jsonl").read_text()
    assert run.holder() is None
