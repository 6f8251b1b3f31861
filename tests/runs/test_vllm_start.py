"""Where stages that sample with vLLM are started, and what is found out about that before anything starts."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from spa_recipes.errors import RecipeError
from spa_recipes.generation.vllm import _engine_error, _first_sentence, _start_error
from spa_recipes.plan import Plan, StageOutput, compile_plan
from spa_recipes.recipe.schema import Compute, Model, Recipe
from spa_recipes.run import executors, vllm_preflight
from spa_recipes.run.executors import VllmProcesses, vllm_processes_of
from spa_recipes.state.digests import DigestMemo
from tests.kit.recipes import merged, mini


def plan_of(tmp_path: Path, **changes: Any) -> Plan:
    recipe = mini(data={"prompts_per_iteration": [8]})
    recipe["sampling"]["backend"] = {"type": "vllm"}
    return compile_plan(Recipe.model_validate(merged(recipe, changes)), DigestMemo(tmp_path / "memo"))


# --- the recipe and the plan


def test_a_whole_answer_must_fit_the_engine() -> None:
    recipe = mini()
    recipe["sampling"]["backend"] = {"type": "vllm", "max_model_len": 79}
    with pytest.raises(ValidationError, match=r"max_model_len \(79\) must not be less than .* \(80\)"):
        Recipe.model_validate(recipe)


def test_an_adapter_needs_lora() -> None:
    recipe = mini()
    recipe["sampling"]["backend"] = {"type": "vllm", "lora": "adapter"}
    with pytest.raises(ValidationError, match=r"needs model\.lora"):
        Recipe.model_validate(recipe)


def test_an_adapter_is_sampled_beside_the_weights_it_was_trained_on(tmp_path: Path) -> None:
    lora = {"model": {"lora": {}}, "sampling": {"backend": {"lora": "adapter"}}}
    plan = plan_of(tmp_path, **lora)
    for stage, maker, below in (("generate-1", "seed", "sft"), ("evaluate-1", "refine-1", "seed")):
        inputs = plan.stage(stage).inputs
        assert inputs["policy"] == StageOutput(maker, "model")
        assert inputs["adapter"] == StageOutput(maker, "adapter")
        assert inputs["base"] == StageOutput(below, "model")
    merged_plan = plan_of(tmp_path, model={"lora": {}})
    assert "adapter" not in merged_plan.stage("generate-1").inputs
    assert merged_plan.stage("generate-1").key != plan.stage("generate-1").key
    assert merged_plan.stage("seed").key == plan.stage("seed").key


def test_where_it_runs_does_not_change_a_key(tmp_path: Path) -> None:
    one = plan_of(tmp_path)
    backend = {"tensor_parallel_size": 2, "data_parallel_size": 4, "gpu_memory_utilization": 0.5, "max_model_len": 100}
    other = plan_of(tmp_path, sampling={"backend": backend}, compute={"vllm_python": "/there/python"})
    assert [stage.key for stage in one.stages] == [stage.key for stage in other.stages]


# --- starting


def test_stages_that_sample_with_vllm_and_no_others_get_processes_of_vllm(tmp_path: Path) -> None:
    compute = Compute(vllm_python="/there/python")
    plan = plan_of(tmp_path, sampling={"backend": {"data_parallel_size": 2, "tensor_parallel_size": 4}})
    found = {stage.id: vllm_processes_of(stage, compute) for stage in plan.stages if vllm_processes_of(stage, compute)}
    assert set(found) == {"evaluate-init", "evaluate-0", "generate-1", "evaluate-1"}
    assert set(found.values()) == {VllmProcesses("/there/python", 2, 4)}
    assert vllm_processes_of(plan.stage("generate-1"), Compute()) == VllmProcesses(sys.executable, 2, 4)


SPEAK = "import os, sys; seen = map(os.environ.get, ('SPA_RANK', 'SPA_WORLD_SIZE', 'CUDA_VISIBLE_DEVICES')); \
os.write(1, (' '.join(map(str, seen)) + os.linesep).encode()); sys.exit((os.environ.get('SPA_RANK') == {bad!r}) * 7)"
"""One write a line, which no other copy's can come between."""


def started(log: Path, monkeypatch: pytest.MonkeyPatch, copies: int, gpus: list[str], bad: str = "") -> Any:
    """Copies of vLLM whose workers print what they see; the one with rank `bad` fails."""
    program = log.with_name("python")
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{SPEAK.format(bad=bad)}"\n')
    program.chmod(0o755)
    monkeypatch.setattr(executors, "visible_gpus", lambda: gpus)
    return executors._vllm_workers(VllmProcesses(str(program), copies, 2), Path("spec.json"), log)


def ended(running: Any) -> int:
    end = time.monotonic() + 30
    while (code := running.poll()) is None:
        assert time.monotonic() < end
        time.sleep(0.02)
    return int(code)


def test_each_copy_has_its_rank_and_its_own_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    log = tmp_path / "log"
    assert ended(started(log, monkeypatch, 2, ["4", "5", "6", "7"])) == 0
    assert sorted(log.read_text().split("\n")[:-1]) == ["0 2 4,5", "1 2 6,7"]


def test_without_gpus_nothing_is_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    log = tmp_path / "log"
    assert ended(started(log, monkeypatch, 2, [])) == 0
    assert sorted(log.read_text().split("\n")[:-1]) == ["0 2 None", "1 2 None"]
    log.unlink()
    assert ended(started(log, monkeypatch, 1, ["0", "1"])) == 0
    assert log.read_text() == "None None None\n"


def test_a_stage_fails_as_soon_as_one_copy_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ended(started(tmp_path / "log", monkeypatch, 3, [], bad="1")) == 7


ORPHAN = "import os, subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)']); \
print(p.pid, flush=True); os.kill(os.getpid(), 9)"


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_children_of_a_killed_stage_go_with_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert ended(executors.Worker([sys.executable, "-c", ORPHAN], log)) == -9
    child = Path(f"/proc/{int(log.read_text())}/stat")
    end = time.monotonic() + 10
    while child.exists() and child.read_text().split()[2] != "Z":
        assert time.monotonic() < end
        time.sleep(0.02)


# --- before anything starts


def look(tmp_path: Path, compute: Compute | None = None, **backend: Any) -> None:
    plan = plan_of(tmp_path, sampling={"backend": backend})
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


def test_what_is_wrong_is_named_as_the_command_calls_it(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    with pytest.raises(RecipeError, match=r"^--vllm-python: no such program: /no/python"):
        vllm_preflight.check_vllm(plan.stages, Compute(vllm_python="/no/python"), vllm_preflight.AS_OPTIONS)


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


def test_gpus_are_those_that_may_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "has_nvidia_driver", lambda: True)
    monkeypatch.setitem(os.environ, "CUDA_VISIBLE_DEVICES", "3, 5")
    assert executors.visible_gpus() == ["3", "5"]
    monkeypatch.setattr(executors, "has_nvidia_driver", lambda: False)
    assert executors.visible_gpus() == []


# --- what vLLM says, in one line

SEE_ABOVE = RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {}")
PREFIX = "(EngineCore pid=12) ERROR 01-02 03:04:05 [core.py:1512] "


@pytest.mark.parametrize(
    ("said", "fix"),
    [
        (
            "Free memory on device cuda:0 (3.1/79.2 GiB) on startup is less than desired.",
            "gpu_memory_utilization lower",
        ),
        ("No available memory for the cache blocks.", "gpu_memory_utilization or tensor_parallel_size higher"),
        (
            "To serve at least one request with the model's max seq len (32768), (4.0 GiB KV cache is needed, which is "
            "larger than the available KV cache memory (1.5 GiB).",
            "max_model_len (or model.max_length) lower",
        ),
        ("CUDA out of memory. Tried to allocate 2.00 GiB.", "max_model_len lower"),
    ],
)
def test_memory_names_the_keys_to_change(said: str, fix: str) -> None:
    """The engine's process writes its error to the log only."""
    log = f"{PREFIX}Traceback:\n{PREFIX}ValueError: {said} See the documentation.\n{PREFIX}RuntimeError: root cause\n"
    error = _start_error(SEE_ABOVE, Model(model_name_or_path="org/big"), log)
    assert error.exit_code == 75
    assert "\n" not in str(error)
    assert said.rstrip(".") + ";" in str(error)
    assert fix in error.fix
    assert "documentation" not in str(error)


def test_a_cause_of_its_own_needs_no_log() -> None:
    pydantic = (
        "1 validation error for ModelConfig\n  Value error, Architectures ['Foo'] are not supported. Try x [type=v"
    )
    error = _start_error(ValueError(pydantic), Model(model_name_or_path="org/foo"), f"{PREFIX}ValueError: other")
    assert error.exit_code == 2
    assert str(error).startswith("org/foo: vLLM cannot serve this model: Architectures ['Foo'] are not supported;")


def test_without_a_log_the_error_itself_is_told() -> None:
    error = _engine_error(SEE_ABOVE, Model(model_name_or_path="m"), "")
    assert error.exit_code == 1
    assert "Engine core initialization failed" in str(error)
    assert _first_sentence("") == ""
