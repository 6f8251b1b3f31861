"""vLLM for real, on the CPU: agreement with transformers, stages through the command line, and what goes wrong.

Runs where `SPA_VLLM_PYTHON` names a Python with vLLM, or `make test-vllm` has set one up.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from spa_recipes.data.chat import Renderer, load_tokenizer
from spa_recipes.data.rows import read_jsonl
from spa_recipes.sandbox.model import build_model
from spa_recipes.sandbox.rows import preference_rows
from tests.kit.cli import run_spa
from tests.kit.processes import wait_for
from tests.kit.recipes import mini, write_recipe

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-3
"""Nats between vLLM's log-prob of a whole answer and that of transformers; measured: below 2e-5 in float32."""
ENGINE = {"type": "vllm", "enforce_eager": True, "gpu_memory_utilization": 0.1, "shard_size": 8}


@pytest.fixture(scope="module")
def vllm_python() -> str:
    named = os.environ.get("SPA_VLLM_PYTHON")
    if named is not None:
        return named  # and if it is not there, the tests fail
    found = ROOT / ".venv-vllm" / "bin" / "python"
    if not found.exists():
        pytest.skip("no Python with vLLM: `make test-vllm` sets one up, or SPA_VLLM_PYTHON names one")
    return str(found)


# --- the engine


@pytest.fixture(scope="module")
def seen(vllm_python: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("engine")
    done = subprocess.run(
        [vllm_python, "-m", "tests.vllm_cpu.engine", str(folder)], cwd=ROOT, capture_output=True, text=True, timeout=800
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


def test_every_group_comes_back(seen: dict[str, Any]) -> None:
    assert seen["groups"] == [0, 1, 2, 3]
    assert len(seen["sampled"]) == 48


@pytest.mark.parametrize("kind", ["sampled", "greedy"])
def test_kept_log_probs_are_those_of_transformers(seen: dict[str, Any], kind: str) -> None:
    """At temperature 1, whatever the temperature of the sampling was."""
    for name, logp in seen[f"{kind}: logps by transformers"].items():
        assert sum(seen[kind][name]["logps"]) == pytest.approx(logp, abs=TOLERANCE)


def test_greedy_answers_are_those_of_transformers(seen: dict[str, Any]) -> None:
    ours, theirs = seen["greedy"], seen["greedy by transformers"]
    for name, answer in ours.items():
        assert answer["response_ids"] == theirs[name]["response_ids"]
        assert answer["finish_reason"] == theirs[name]["finish_reason"]


def test_a_request_gets_the_same_sample_beside_others(seen: dict[str, Any]) -> None:
    """Its seed is its own: what a resumed run has left to ask for does not matter."""
    other = seen["sampled in another order"]
    assert {name: a["response_ids"] for name, a in seen["sampled"].items()} == {
        name: a["response_ids"] for name, a in other.items()
    }
    texts = [tuple(a["response_ids"]) for a in seen["sampled"].values()]
    assert len(set(texts)) == len(texts)


def test_only_our_stop_tokens_end_an_answer(seen: dict[str, Any]) -> None:
    stops = set(seen["stops"])
    ended = [answer for answer in seen["sampled"].values() if answer["finish_reason"] == "stop"]
    assert ended
    for answer in seen["sampled"].values():
        assert not stops & set(answer["response_ids"][:-1])
        assert (answer["response_ids"][-1] in stops) == (answer["finish_reason"] == "stop")
        assert answer["finish_reason"] == "stop" or len(answer["response_ids"]) == 40


def test_a_prompt_that_is_too_long_never_reaches_the_engine(seen: dict[str, Any]) -> None:
    assert seen["too long"] == (
        "prompt p0: a prompt of 49 tokens and an answer of up to 40 do not fit sampling.backend.max_model_len (88); "
        "shorten the prompt, or raise sampling.backend.max_model_len"
    )


def test_a_closed_engine_leaves_no_process(seen: dict[str, Any]) -> None:
    assert "VLLM::EngineCore" in seen["processes"]
    assert seen["processes after"] == []


# --- stages


def recipe(python: str, **changes: Any) -> dict[str, Any]:
    base = mini(
        model={"model_name_or_path": "model"},
        data={"prompts_per_iteration": [16], "heldout": 8},
        sft=None,
        sampling={"max_tokens": 24, "max_empty": 1.0, "backend": {"batch_size": None}},
        evaluation={"enabled": False},
        compute={"vllm_python": python},
    )
    base["sampling"]["backend"] = dict(ENGINE)
    for section, values in changes.items():
        base[section] = {**base[section], **values}
    return base


@pytest.fixture
def home(tmp_path: Path) -> Path:
    build_model(tmp_path / "model", num_heads=3)
    return tmp_path


def output(home: Path, stage: str, name: str) -> Path:
    (found,) = home.glob(f"runs/mini/stages/[0-9][0-9]-{stage}-????????/output/{name}")
    return found


def metrics(home: Path, stage: str) -> dict[str, Any]:
    (found,) = home.glob(f"runs/mini/stages/[0-9][0-9]-{stage}-????????/manifest.json")
    return dict(json.loads(found.read_text())["metrics"])


def engines_at_work(home: Path) -> dict[int, str]:
    """Processes that hold a model for a run in a folder, with their commands: stage workers and vLLM's own."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cwd").readlink() == home.resolve():
                found[int(entry.name)] = (entry / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
        except OSError:
            continue
    kinds = ("VLLM", "spa_recipes.run", "spawn")
    return {pid: command for pid, command in found.items() if any(kind in command for kind in kinds)}


@pytest.fixture
def started(home: Path) -> Iterator[Callable[..., "subprocess.Popen[bytes]"]]:
    processes: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(
            [sys.executable, "-m", "spa_recipes.cli", *arguments],
            cwd=home,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()


def test_killed_in_the_middle_it_goes_on_and_with_two_engines(
    vllm_python: str, home: Path, started: Callable[..., "subprocess.Popen[bytes]"]
) -> None:
    prompts, shard = 480, int(str(ENGINE["shard_size"]))  # more than the engine has at once
    data = {"pairs": {"type": "sandbox", "rows": 700}, "prompts_per_iteration": [prompts]}
    write_recipe(home / "r.yaml", recipe(vllm_python, data=data))
    run = started("run", "r.yaml", "--trust", "--until", "generate-1")
    shards = "runs/mini/stages/*-generate-1-*/work/shards/completions/*.parquet"
    wait_for(lambda: list(home.glob(shards)) or run.poll() is not None, 400)
    # A small model answers all in a second or two: the kill is to meet it where it stands.
    engines = engines_at_work(home)
    assert engines
    for pid in engines:
        os.kill(pid, signal.SIGSTOP)
    run.send_signal(signal.SIGKILL)
    run.wait()
    for pid in engines:
        os.kill(pid, signal.SIGCONT)
    wait_for(lambda: not engines_at_work(home), 30)
    made = {path.name: path.read_bytes() for path in home.glob(shards)}
    assert 0 < len(made) < prompts // shard, "the run was not stopped in the middle"
    assert not list(home.glob("runs/mini/stages/*-generate-1-*/output"))

    keep = ["--set", "storage.keep_shards=true", "--set", "sampling.backend.data_parallel_size=2"]
    done = run_spa(home, "run", "r.yaml", "--trust", "--until", "generate-1", *keep)
    assert done.returncode == 0, done.stderr
    assert {path.name: path.read_bytes() for path in home.glob(shards) if path.name in made} == made
    assert not engines_at_work(home)
    assert metrics(home, "generate-1")["logp_difference_max"] < TOLERANCE

    rows = pq.read_table(output(home, "generate-1", "completions.parquet")).to_pylist()
    assert [(row["item"], row["sample"]) for row in rows] == [(i, k) for i in range(prompts) for k in range(2)]
    renderer = Renderer(load_tokenizer(output(home, "seed", "model")), max_prompt_length=48, max_length=128)
    asked = read_jsonl(output(home, "data", "prompts-1.jsonl"))
    special = set(renderer.tokenizer.all_special_ids)
    finished = [row for row in rows if row["finish_reason"] == "stop" and not special & set(row["response_ids"][:-1])]
    assert len(finished) > 5
    for row in rows:
        assert row["prompt_ids"] == renderer.prompt_ids(asked[row["item"]]["prompt"])
    for row in finished:  # what was sampled is what training reads
        if row["text"]:
            assert row["response_ids"] == renderer.response_ids(asked[row["item"]]["prompt"], row["text"])


def test_an_adapter_beside_its_base_samples_like_the_merged_model(vllm_python: str, home: Path) -> None:
    """The check of the kept log-probs reads the merged model, so it tells both apart."""
    lora = recipe(
        vllm_python,
        model={"lora": {"lora_r": 4, "lora_alpha": 64}},
        seed_training={"learning_rate": 5e-3, "num_train_epochs": 3},
        sampling={"backend": {**ENGINE, "lora": "adapter"}},
    )
    write_recipe(home / "r.yaml", lora)
    done = run_spa(home, "run", "r.yaml", "--trust", "--until", "generate-1")
    assert done.returncode == 0, done.stderr
    assert metrics(home, "generate-1")["logp_difference_max"] < TOLERANCE
    adapter = json.loads(output(home, "seed", "adapter/adapter_config.json").read_text())
    assert adapter["r"] == 4
    assert adapter["base_model_name_or_path"] is None
    assert pq.read_table(output(home, "generate-1", "completions.parquet")).num_rows == 32


def test_an_evaluation_samples_with_vllm_too(vllm_python: str, home: Path) -> None:
    write_recipe(home / "r.yaml", recipe(vllm_python, evaluation={"enabled": True, "max_prompts": 6}))
    done = run_spa(home, "run", "r.yaml", "--trust", "--until", "evaluate-init")
    assert done.returncode == 0, done.stderr
    samples = read_jsonl(output(home, "evaluate-init", "samples.jsonl"))
    assert len(samples) == 6
    assert all(isinstance(sample["reward"], float) for sample in samples)


def test_spa_evaluate_samples_with_vllm_too(vllm_python: str, home: Path) -> None:
    build_model(home / "other", num_heads=3, seed=1)
    prompts = [{"prompt": row["chosen"][:1]} for row in preference_rows(6, seed=5)]
    (home / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    pairwise = ["--benchmark", "pairwise", "--against", "other", "--prompts", "prompts.jsonl", "--out", "result"]
    keys = [
        "benchmark.judge.type=gold",
        f"compute.vllm_python={vllm_python}",
        "backend.gpu_memory_utilization=0.1",
        "benchmark.max_tokens=24",
        "model.max_length=128",
    ]
    overrides = [part for key in keys for part in ("--set", key)]
    done = run_spa(home, "evaluate", "model", *pairwise, "--backend", "vllm", *overrides)
    assert done.returncode == 0, done.stderr
    outcomes = read_jsonl(home / "result" / "outcomes.jsonl")
    assert len(outcomes) == 6


def test_a_model_on_two_devices(vllm_python: str, home: Path) -> None:
    """Tensor parallel: on a CPU a process per part, each with the cores that vLLM's own variable gives it."""
    build_model(home / "model", hidden_size=128, num_heads=4)
    two = recipe(vllm_python)
    two["sampling"]["backend"]["tensor_parallel_size"] = 2
    write_recipe(home / "r.yaml", two)
    cores = {"VLLM_CPU_OMP_THREADS_BIND": "0|1" if (os.cpu_count() or 1) > 1 else "0|0"}
    done = run_spa(home, "run", "r.yaml", "--trust", "--until", "generate-1", **cores)
    assert done.returncode == 0, done.stderr
    assert metrics(home, "generate-1")["logp_difference_max"] < TOLERANCE
    assert pq.read_table(output(home, "generate-1", "completions.parquet")).num_rows == 32
    assert not engines_at_work(home)


# --- what goes wrong


def cannot_serve(python: str, home: Path, **backend: Any) -> tuple[int, str]:
    short = recipe(python, data={"seed_labels": 0, "prompts_per_iteration": [8]})
    short["judge"] = {"reference": "model"}
    short["sampling"]["backend"] |= backend
    write_recipe(home / "r.yaml", short)
    done = run_spa(home, "run", "r.yaml", "--trust", "--until", "generate-1")
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: generate-1: ")]
    return done.returncode, line


@pytest.mark.parametrize(
    ("share", "fix"),
    [(1.0, "gpu_memory_utilization lower"), (1e-6, "gpu_memory_utilization or tensor_parallel_size higher")],
    ids=["held by others", "too small"],
)
def test_too_little_memory_is_one_line(vllm_python: str, home: Path, share: float, fix: str) -> None:
    code, line = cannot_serve(vllm_python, home, gpu_memory_utilization=share)
    assert code == 75
    assert "not enough memory for vLLM: Available memory on node" in line
    assert fix in line


def test_settings_that_vllm_refuses_are_one_line(vllm_python: str, home: Path) -> None:
    code, line = cannot_serve(vllm_python, home, max_model_len=512)  # of a model with 256 positions
    assert code == 2
    assert "vLLM cannot serve this model: User-specified max_model_len (512) is greater than" in line


def test_an_engine_that_stops_says_why(vllm_python: str, tmp_path: Path) -> None:
    build_model(tmp_path / "model")  # heads of 24, for which vLLM's attention on the CPU has no code
    code, line = cannot_serve(vllm_python, tmp_path)
    assert code == 1
    assert "vLLM stopped: Unsupported CPU attention configuration: head_dim=24" in line
