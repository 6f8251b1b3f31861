"""Where stages that sample with vLLM are started, and what is found out about that before anything starts."""

import importlib.util
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from spa_recipes.errors import RecipeError
from spa_recipes.recipe.schema import Compute, LocalExecutor
from spa_recipes.run import executors, processes, vllm_preflight
from spa_recipes.run.executors import VllmProcesses
from tests.kit.plans import vllm_plan

# --- starting


SPEAK = """#!/bin/sh
echo "$SPA_POOL" "$CUDA_VISIBLE_DEVICES" >> {folder}/seen
if [ "$SPA_POOL" = "{bad}" ]; then echo '{{"what": "broken"}}' > {folder}/error-$SPA_POOL.json; exit 7; fi
touch {folder}/done-$SPA_POOL
"""
"""A worker that notes what it sees and leaves the mark of one that is done, or a reason if it is the bad one."""


def started(folder: Path, monkeypatch: pytest.MonkeyPatch, copies: int, gpus: list[str], bad: str = "none") -> Any:
    """Copies of vLLM whose workers note what they see; the one with the name `bad` fails."""
    program = folder / "python"
    program.write_text(SPEAK.format(folder=folder, bad=bad))
    program.chmod(0o755)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(executors, "visible_gpus", lambda: gpus)
    workers = VllmProcesses(str(program), copies, 2)
    return executors.Executors(LocalExecutor())._in_shards(workers, Path("spec.json"), folder / "worker.log", {})


def seen(folder: Path) -> list[str]:
    return sorted((folder / "seen").read_text().split("\n")[:-1])


def test_the_processes_of_vllm_meet_on_loopback_unless_the_user_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("VLLM_HOST_IP", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    program = tmp_path / "python"
    program.write_text('#!/bin/sh\necho "$' + " $".join(names) + f'"\ntouch {tmp_path}/done-$SPA_POOL\n')
    program.chmod(0o755)
    monkeypatch.setattr(executors, "visible_gpus", lambda: [])
    for copies in (1, 2):
        vllm = VllmProcesses(str(program), copies, 1)
        for chosen, said in ((None, "127.0.0.1 lo lo"), ("eth7", "127.0.0.1 lo eth7")):
            if chosen is not None:
                monkeypatch.setenv("NCCL_SOCKET_IFNAME", chosen)
            log = tmp_path / f"log-{copies}-{chosen}"
            begun = executors.Executors(LocalExecutor()).start("generate", Path("spec.json"), log, vllm)
            assert ended(begun) == 0
            assert {path.read_text() for path in tmp_path.glob(f"{log.name}*")} == {f"{said}\n"}
        monkeypatch.delenv("NCCL_SOCKET_IFNAME")


def ended(running: Any) -> int:
    end = time.monotonic() + 30
    while (code := running.poll()) is None:
        assert time.monotonic() < end
        time.sleep(0.02)
    return int(code)


def test_each_copy_has_its_own_gpus_and_one_process_joins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ended(started(tmp_path, monkeypatch, 2, ["4", "5", "6", "7"])) == 0
    assert seen(tmp_path) == [" 4,5", "pool-0 4,5", "pool-1 6,7"]


def test_without_gpus_nothing_is_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ended(started(tmp_path, monkeypatch, 2, [])) == 0
    assert seen(tmp_path) == [" ", "pool-0 ", "pool-1 "]


def test_one_copy_sees_all_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ended(started(tmp_path, monkeypatch, 1, ["0", "1"])) == 0
    assert seen(tmp_path) == [" "]


def test_a_stage_fails_as_soon_as_one_copy_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ended(started(tmp_path, monkeypatch, 3, [], bad="pool-1")) == 7


ORPHAN = "import os, subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)']); \
print(p.pid, flush=True); os.kill(os.getpid(), 9)"


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_children_of_a_killed_stage_go_with_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert ended(processes.Worker([sys.executable, "-c", ORPHAN], log)) == -9
    child = Path(f"/proc/{int(log.read_text())}/stat")
    end = time.monotonic() + 10
    while child.exists() and child.read_text().split()[2] != "Z":
        assert time.monotonic() < end
        time.sleep(0.02)


# --- before anything starts


def look(tmp_path: Path, compute: Compute | None = None, **backend: Any) -> None:
    plan = vllm_plan(sampling={"backend": backend})
    vllm_preflight.check_vllm(plan.stages, compute or Compute(vllm_python=sys.executable))


def python_that_says(tmp_path: Path, answer: str) -> Compute:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\necho '{answer}'\n")
    program.chmod(0o755)
    return Compute(vllm_python=str(program))


def test_a_python_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"compute\.vllm_python: no such program: /no/python"):
        look(tmp_path, Compute(vllm_python="/no/python"))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("not json", "does not run as a Python"),
        ('{"vllm": false, "spa": "0.1.0"}', "vLLM is not installed for"),
        ('{"vllm": true, "spa": null}', "spa-recipes is not installed for"),
        ('{"vllm": true, "spa": "0.0.1"}', r"spa-recipes 0\.0\.1 for .* and 0\.1\.0 here"),
    ],
)
def test_a_python_without_what_it_needs(tmp_path: Path, answer: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        look(tmp_path, python_that_says(tmp_path, answer))


def test_what_is_asked_of_the_other_python(tmp_path: Path) -> None:
    """The real question to this one, which has spa-recipes, and without its site packages."""
    for options, version in (([], "0.1.0"), (["-I", "-S"], None)):
        call = [sys.executable, *options, "-c", vllm_preflight._LOOK]
        answer = subprocess.run(call, capture_output=True, text=True, check=True)
        assert json.loads(answer.stdout)["spa"] == version


def test_a_job_names_its_own_key(tmp_path: Path) -> None:
    plan = vllm_plan()
    with pytest.raises(RecipeError, match=r"^compute\.vllm_python: no such program: /no/python"):
        vllm_preflight.check_vllm(plan.stages, Compute(vllm_python="/no/python"), vllm_preflight.IN_A_JOB)


@pytest.mark.skipif(shutil.which("python") is None, reason="no other program to name")
def test_vllm_that_is_not_installed_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"vLLM is not installed here.*spa-recipes\[vllm\].*compute\.vllm_python"):
        look(tmp_path, Compute())


def test_more_gpus_than_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = python_that_says(tmp_path, '{"vllm": true, "spa": "0.1.0"}')
    monkeypatch.setattr(vllm_preflight, "visible_gpus", lambda: ["0", "1"])
    with pytest.raises(RecipeError, match="asks for 4 GPUs and there are 2"):
        look(tmp_path, good, tensor_parallel_size=2, data_parallel_size=2)
    look(tmp_path, good, tensor_parallel_size=2)
