"""A pool of workers makes the shards of a stage: each once, whoever dies, and with the bytes that one process makes."""

import json
import os
import shutil
import sys
import time
from pathlib import Path

import pytest

from spa_recipes.run.pool import Pool
from spa_recipes.run.processes import Worker
from spa_recipes.stages.context import POOL
from tests.kit.cli import run_spa
from tests.kit.runs import attempts, outputs, stage_dir
from tests.kit.stages import spec_of

pytestmark = pytest.mark.usefixtures("forks")
EXECUTOR = "compute.executor={type: accelerate, num_processes: 2}"


def test_a_pool_makes_the_bytes_that_one_process_makes(home: Path) -> None:
    """Stages that sample and score are done again in two processes each; what was trained stays."""
    before = outputs(home)
    done_again = [path for path in (home / "runs" / "mini" / "stages").iterdir() if _is_sharded(path)]
    assert len(done_again) >= 4
    for path in done_again:
        shutil.rmtree(path)
    halves = [f"{name}.per_device_train_batch_size=8" for name in ("sft", "seed_training", "refine")]
    done = run_spa(home, "resume", "mini", *(text for each in (EXECUTOR, *halves) for text in ("--set", each)))
    assert done.returncode == 0, done.stderr + done.stdout
    assert outputs(home) == before
    for path in done_again:
        (attempt,) = (path / "attempts").iterdir()
        assert {log.name for log in attempt.glob("worker*.log")} >= {"worker-pool-0.log", "worker-pool-1.log"}
        assert len(list(attempt.glob("done-pool-*"))) >= 1
        assert not list(attempt.glob("draft-*"))
    assert set(attempts(home).values()) == {1}
    shards = {
        path.name for path in (stage_dir(home, "generate-1") / "work" / "shards" / "completions").glob("*.parquet")
    }
    assert len(shards) == 2


def _is_sharded(path: Path) -> bool:
    return any(part in path.name for part in ("-generate-", "-score-", "-evaluate-"))


STAGE = """
import os, signal, sys, time
from pathlib import Path
import pyarrow as pa
from spa_recipes.run.failure import ERROR
from spa_recipes.stages.common import sharded
from spa_recipes.stages.context import Context, StageSpec
from spa_recipes.state import atomic
context = Context.from_environment(StageSpec.read(Path(sys.argv[1])))
name, body = context.pool, sys.argv[2]
def rows(start, end):
    exec(body)
    time.sleep(0.05)
    return pa.table({"n": list(range(start, end))})
table = sharded(context, "t", 12, 2, pa.schema([("n", pa.int64())]), rows)
if table is None:
    context.own_file("done").write_text("")
else:
    Path(context.spec.stage_dir, "joined").write_text(str(table["n"].to_pylist()))
"""
"""A stage that makes a table of numbers in six shards, and does in each what the test says."""


def pool_of(folder: Path, body: str, size: int = 2, restarts: int = 0) -> Pool:
    spec = spec_of(folder, "score", {}, {})
    attempt = folder / "attempts" / "1"
    spec.write(attempt / "spec.json")

    def begin(name: str | None, slot: int) -> Worker:
        environment = {} if name is None else {POOL: name}
        command = [sys.executable, "-c", STAGE, str(attempt / "spec.json"), body]
        return Worker(command, attempt / f"worker-{name}.log", environment)

    return Pool(begin, size, attempt, restarts=restarts)


def end(pool: Pool) -> int:
    until = time.monotonic() + 60
    while (code := pool.poll()) is None:
        assert time.monotonic() < until
        time.sleep(0.02)
    return code


def notices(folder: Path) -> list[str]:
    path = folder / "attempts" / "1" / "progress-pool.jsonl"
    return [json.loads(line)["notice"] for line in path.read_text().splitlines()] if path.exists() else []


KILLED = "if name == 'pool-0': os.kill(os.getpid(), signal.SIGKILL)"
ALL = str(list(range(12)))


@pytest.mark.parametrize(
    ("body", "restarts", "told"),
    [
        ("if name == 'pool-0': os.kill(os.getpid(), signal.SIGKILL)", 0, "1 of its shards are free again"),
        (
            "if name == 'pool-0': os.kill(os.getpid(), signal.SIGKILL)",
            1,
            "another begins in its place (0 more at most)",
        ),
        ("if name == 'pool-0': os._exit(0)", 0, "pool-0 is gone (exit code 0)"),  # as srun says of a lost node
    ],
)
def test_the_shards_of_a_lost_worker_are_made_by_others(tmp_path: Path, body: str, restarts: int, told: str) -> None:
    assert end(pool_of(tmp_path, body, restarts=restarts)) == 0
    assert (tmp_path / "joined").read_text() == ALL
    (notice,) = notices(tmp_path)
    assert told in notice


def test_a_worker_that_says_why_it_failed_ends_the_stage(tmp_path: Path) -> None:
    body = "if name == 'pool-1': atomic.write_text(context.own_file(ERROR), '{\"what\": \"no\"}'); os._exit(3)"
    assert end(pool_of(tmp_path, body)) == 3
    assert not (tmp_path / "joined").exists()


def test_a_pool_that_lost_all_its_workers_is_over_and_commits_nothing(tmp_path: Path) -> None:
    assert end(pool_of(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)", restarts=1)) == -9
    assert not (tmp_path / "joined").exists()
    assert len(notices(tmp_path)) == 3


def test_a_worker_that_never_starts_does_not_hold_up_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a step does that waits for a node that is down."""
    monkeypatch.setattr("spa_recipes.run.pool.END_SECONDS", 0.5)
    monkeypatch.setattr("spa_recipes.run.processes.GRACE_SECONDS", 0.5)
    pool = pool_of(tmp_path, "if name == 'pool-0': time.sleep(0.2)", size=1)
    waits = Worker(["sleep", "99"], tmp_path / "log")
    pool._workers[1] = ("pool-9", waits)
    assert end(pool) == 0
    assert (tmp_path / "joined").read_text() == ALL
    assert waits.poll() is not None
    assert os.environ.get(POOL) is None
