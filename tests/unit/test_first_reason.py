"""Of what several processes of a stage say at the end, the first real reason is shown; a lost one is told apart."""

import json
import os
from pathlib import Path

import pytest

from spa_recipes.errors import DataError, StageError, TryAgainError
from spa_recipes.run.failure import LostError, stage_failure
from spa_recipes.run.progressfile import Progress
from tests.kit.plans import plan_of

SEED = plan_of().stage("seed")


def leave(attempt: Path, name: str, what: str, time: int, code: int = 1) -> None:
    path = attempt / name
    path.write_text(json.dumps({"exit_code": code, "what": what, "where": "", "fix": ""}))
    os.utime(path, (time, time))


RESET = "DistBackendError: [/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:2391"


def test_the_reason_of_the_process_that_failed_is_shown_and_not_what_the_others_saw(tmp_path: Path) -> None:
    leave(tmp_path, "error.json", RESET, 5)
    leave(tmp_path, "error-3.json", "row 7 has no answer", 9, code=3)
    error = stage_failure(SEED, 1, tmp_path)
    assert isinstance(error, DataError)
    assert "row 7 has no answer" in str(error)
    assert str(tmp_path / "worker-3.log") in str(error)


def test_what_several_launchers_say_at_a_time_hides_no_lost_process(tmp_path: Path) -> None:
    """Their lines stand between each other's in one log."""
    said = "E1127 01:29:55.791000 16866 api.py:1002] failed (exitcode: -9) local_rank: 0 (pid: 7) of binary: python"
    text = f"Traceback (most recent call last):\n{said}\n  File 'x'\ntorch.SignalException: Process 8 got signal: 15\n"
    (tmp_path / "worker.log").write_text(text)
    assert isinstance(stage_failure(SEED, 1, tmp_path), LostError)


def test_of_several_reasons_the_first_is_shown(tmp_path: Path) -> None:
    leave(tmp_path, "error-1.json", "out of memory", 5, code=75)
    leave(tmp_path, "error.json", "the loss is not finite", 9)
    error = stage_failure(SEED, 1, tmp_path)
    assert type(error) is TryAgainError
    assert "out of memory" in str(error)


def test_where_the_others_only_saw_that_one_is_gone_it_is_lost(tmp_path: Path) -> None:
    leave(tmp_path, "error.json", RESET, 5)
    (tmp_path / "worker.log").write_text(f"training\n{RESET}\n")
    assert isinstance(stage_failure(SEED, 1, tmp_path), LostError)


@pytest.mark.parametrize("code", [0, -9, -15, 137, 143])
def test_a_process_that_left_nothing_is_lost_whatever_its_launcher_says(tmp_path: Path, code: int) -> None:
    """`srun` ends with 0 when the node that it runs on goes down."""
    error = stage_failure(SEED, code, tmp_path)
    assert isinstance(error, LostError)
    assert error.exit_code == 75


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("worker.log", "srun: error: Only allocated 1 nodes asked for 2"),
        (
            "worker.log",
            "slurmstepd: error: *** STEP 7.3 ON n2 CANCELLED AT 2026-01-01T00:00:00 DUE TO NODE FAILURE ***",
        ),
        ("worker-ray.log", "ray: error: The actor died because its node has died."),
    ],
)
def test_a_launcher_that_has_no_machine_is_told_by_its_own_words(tmp_path: Path, name: str, line: str) -> None:
    (tmp_path / "worker.log").write_text("begins\n")
    with (tmp_path / name).open("a") as log:
        log.write(f"{line}\n")
    error = stage_failure(SEED, 1, tmp_path)
    assert isinstance(error, LostError)
    assert line[:60] in str(error)


def test_a_process_that_ended_by_itself_is_no_lost_machine(tmp_path: Path) -> None:
    (tmp_path / "worker.log").write_text("begins\nsrun: error: n1: task 0: Exited with exit code 3\n")
    error = stage_failure(SEED, 3, tmp_path)
    assert type(error) is StageError
    assert "exit code 3" in str(error)


def test_a_crash_is_told_from_the_log_of_the_process_that_crashed(tmp_path: Path) -> None:
    head = "Traceback (most recent call last):"
    (tmp_path / "worker.log").write_text(f'{head}\n  File "x"\ntorch.ChildFailedError: worker FAILED\n')
    (tmp_path / "worker-1.log").write_text("training\nFatal Python error: Segmentation fault\n")
    error = stage_failure(SEED, 1, tmp_path)
    assert isinstance(error, StageError)
    assert "Fatal Python error: Segmentation fault" in str(error)
    assert str(tmp_path / "worker-1.log") in str(error)


def test_progress_of_several_processes_is_that_of_the_furthest_and_each_notice_is_said_once(tmp_path: Path) -> None:
    progress = Progress(tmp_path)
    for name, done in (("progress-pool-0.jsonl", 3), ("progress-pool-1.jsonl", 8)):
        step = {"done": done, "total": 10, "unit": "answers", "note": ""}
        (tmp_path / name).write_text(f'{{"notice": "float32"}}\n{json.dumps(step)}\n')
    news = progress.news()
    assert news.notices == ["float32"]
    assert news.step is not None
    assert news.step["done"] == 8
    (tmp_path / "progress-pool-2.jsonl").write_text('{"notice": "float32"}\n{"notice": "shard again"}\n')
    assert progress.news().notices == ["shard again"]
