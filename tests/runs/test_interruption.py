"""Stopped anywhere, a run goes on and ends with the same bytes; nothing of it stays behind when it is stopped."""

import signal
import sys
from pathlib import Path

import pytest

from tests.kit.cli import run_spa, start
from tests.kit.models import judge_inputs
from tests.kit.processes import processes_of, stopped_in, wait_for
from tests.kit.recipes import KEEPING, write_recipe
from tests.kit.refused_calls import Refused, variable
from tests.kit.runs import metrics, outputs


def stage(folder: Path, name: str, pattern: str) -> list[Path]:
    return list((folder / "runs" / "mini" / "stages").glob(f"[0-9][0-9]-{name}-????????/{pattern}"))


MOMENTS = (
    r"-sft-\w+/work/checkpoints/checkpoint-8/",
    r"-generate-1-\w+/work/shards/completions/\S*00000016-",
    r"-refine-1-\w+/output.draft-\d+/\S*pairs_trace",
)
"""Files in the middle of SFT, of sampling, and of refining behind its first checkpoint, by what is in their paths."""


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_killed_again_and_again_it_ends_with_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    """SIGKILL to the runner while its stage writes such a file; then `spa resume` to the end."""
    write_recipe(tmp_path / "mini.yaml", KEEPING)
    for moment in MOMENTS:
        running = start(tmp_path, "run", "mini.yaml", **variable(Refused("write", "SIGSTOP", moment, times=1)))
        wait_for(lambda: stopped_in(tmp_path), every=0.1)
        assert running.kill() == -signal.SIGKILL
        wait_for(lambda: not processes_of(tmp_path))
    done = run_spa(tmp_path, "resume")
    assert done.returncode == 0, done.stderr
    assert outputs(tmp_path) == outputs(finished)
    assert [metrics(tmp_path, name)["resumed_from_step"] for name in ("sft", "refine-1")] == [4, 1]


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize(("sign", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_and_its_children(tmp_path: Path, sign: signal.Signals, code: int) -> None:
    write_recipe(tmp_path / "mini.yaml", KEEPING)
    running = start(tmp_path, "run", "mini.yaml")
    wait_for(lambda: stage(tmp_path, "sft", "attempts/1/progress.jsonl"))
    assert running.kill(sign) == code
    assert "spa resume" in running.err()
    assert "Traceback" not in running.err()
    assert processes_of(tmp_path) == []
    status = run_spa(tmp_path, "status", "mini")
    assert "interrupted" in status.stdout


def test_spa_judge_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    judge_inputs(tmp_path, 40)
    command = ["judge", "--policy", "policy", "--reference", "reference", "--pairs", "pairs.jsonl"]
    command += ["--max-length", "256", "--max-prompt-length", "128"]  # the sandbox's models have 256 positions
    whole = run_spa(tmp_path, *command, "--out", "whole.jsonl")
    assert whole.returncode == 0, whole.stderr
    running = start(tmp_path, *command, "--out", "out.jsonl")
    wait_for(lambda: list(tmp_path.glob("out.jsonl.spa/stages/*-candidates-*/manifest.json")))
    running.kill()
    assert not (tmp_path / "out.jsonl").exists()
    again = run_spa(tmp_path, *command, "--out", "out.jsonl")
    assert again.returncode == 0, again.stderr
    assert "done before" in again.stdout
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
