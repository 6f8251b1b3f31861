"""What `spa evaluate` refuses, in one line."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from spa_recipes.benchmarks import alpaca_eval
from spa_recipes.state.marker import MARKER
from tests.kit.benchmark_world import sets
from tests.kit.benchmarks import PROMPTS, mt_files, write_lines
from tests.kit.cli import Answer, Spa, one_error

SMALL = ("--set", "model.max_length=200", "--set", "benchmark.max_tokens=24")


@pytest.fixture
def refused(spa_here: Any, here: Path) -> Any:
    """Calls `spa evaluate` and gives back the one line of its error."""

    def call(code: int, *arguments: str) -> str:
        answer: Answer = spa_here("evaluate", *arguments)
        return one_error(answer, code)

    return call


def test_mistakes_are_one_line(refused: Any, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    alpaca = ("--benchmark", "alpaca_eval", "--prompts", "alpaca.json", *SMALL)
    assert refused(2, "one", "--benchmark", "arena").startswith("--benchmark: benchmark.type: must be one of alpaca_")
    assert refused(2, "one").startswith(
        "--benchmark: is needed; choose one of alpaca_eval, lm_eval, mt_bench, pairwise"
    )
    assert refused(2, *alpaca).startswith("MODEL: is needed")
    assert refused(2, "one", *alpaca, *sets("benchmark.questions=q")).startswith(
        "--set benchmark.questions: unknown key; allowed for type alpaca_eval:"
    )
    assert "did you mean alpaca.json" in refused(3, "one", *alpaca[:3], "alpacas.json", *SMALL)
    assert refused(3, "nowhere/at/all", *alpaca).startswith("model.model_name_or_path: nowhere/at/all: no such model")
    assert "model.model_name_or_path: owner/name" in refused(3, "owner/name", *alpaca)
    long = sets("model.max_length=9999")
    assert "model.max_length (9999) is more than the model's" in refused(2, "one", *alpaca[:4], *long)
    assert refused(2, "one", *alpaca[:4], *sets("model.max_length=200")).startswith(
        "--benchmark: benchmark.max_tokens: max_tokens (1024) must be smaller than model.max_length (200); lower it"
    )
    assert refused(2, "one", *alpaca, *sets("benchmark.temperature=-1")).startswith("--set benchmark.temperature:")
    assert refused(2, "one", *alpaca, "--backend", "other").startswith("--backend: backend.type: must be one of trans")
    assert refused(2, "one", *alpaca, *sets("backend.tensor_parallel_size=2")).startswith(
        "--set backend.tensor_parallel_size: unknown key; add type: vllm"
    )
    assert refused(2, "one", *alpaca, *sets("compute.vllm_python=p")).startswith(
        "--set compute.vllm_python: has no effect with backend.type transformers"
    )
    no_python = ("--backend", "vllm", *sets("compute.vllm_python=/no/python"))
    assert refused(2, "one", *alpaca, *no_python).startswith("compute.vllm_python: no such program: /no/python")
    assert "benchmark.questions: this key is required" in refused(2, "one", "--benchmark", "mt_bench", *SMALL)
    if alpaca_eval.is_installed():
        paid = sets("benchmark.annotator=weighted_alpaca_eval_gpt4_turbo")
        assert "OPENAI_API_KEY" in refused(2, "one", *alpaca, *paid)
    assert not list(here.glob("*.spa"))


def test_mistakes_in_annotations_are_one_line(refused: Any, here: Path) -> None:
    assert "no such file" in refused(3, "--benchmark", "alpaca_eval", "--annotations", "gone.json")
    annotated = ("--annotations", "alpaca.json")
    for others in (("one",), ("--benchmark", "mt_bench"), ("--prompts", "p"), sets("seed=1"), ("--backend", "vllm")):
        assert "do not go together" in refused(2, *others, *annotated)


def test_mistakes_in_a_comparison_are_one_line(refused: Any, here: Path) -> None:
    gold = sets("benchmark.judge.type=gold")
    pair: tuple[str, ...] = ("--benchmark", "pairwise", *SMALL)
    prompts = ("--prompts", "prompts.jsonl")
    assert "benchmark.against: there is no run whose pi_init" in refused(2, "one", *pair, *prompts, *gold)
    assert "benchmark.prompts: there are no prompts to answer" in refused(2, "one", *pair, "--against", "two", *gold)
    pair = (*pair, "--against", "two", *prompts)
    assert "give policy and reference" in refused(2, "one", *pair)
    assert "policy and reference belong together" in refused(2, "one", *pair, *sets("benchmark.judge.policy=two"))
    assert "benchmark.judge.type: llm must be another" in refused(2, "one", *pair, *sets("benchmark.judge.type=llm"))
    assert "judge.model_name_or_path: unknown key" in refused(
        2, "one", *pair, *sets("benchmark.judge.model_name_or_path=x", "benchmark.judge.type=gold")
    )
    llm = sets("benchmark.judge.type=llm", "benchmark.judge.model_name_or_path=./no")
    assert refused(3, "one", *pair, *llm).startswith("benchmark.judge.model_name_or_path: ./no: no such")
    assert "must be one of gold, implicit_reward, llm, reward_model" in refused(
        2, "one", *pair, *sets("benchmark.judge.type=me")
    )
    shutil.copytree(here / "two", here / "no-rewarder")
    rewarder = sets("benchmark.judge.type=reward_model", "benchmark.judge.model_name_or_path=no-rewarder")
    assert refused(3, "one", *pair, *rewarder).startswith(
        "benchmark.judge.model_name_or_path: no-rewarder: a reward model has one output"
    )


def test_keys_of_mt_bench_that_belong_together(refused: Any, here: Path) -> None:
    questions, prompts, _ = mt_files(here)
    call = ("one", "--benchmark", "mt_bench", *SMALL, "--prompts", str(questions))
    url = "benchmark.endpoint.base_url=http://127.0.0.1:9/v1"
    assert "benchmark.endpoint.model: this key is required" in refused(2, *call, *sets(url))
    judge = sets(url, "benchmark.endpoint.model=m", "benchmark.endpoint.api_key_env=null")
    assert "endpoint needs judge_prompts" in refused(2, *call, *judge)
    assert refused(2, *call, *judge, *sets("benchmark.endpoint.base_url=ftp://x")).startswith(
        "--set benchmark.endpoint.base_url: must be text that matches"
    )
    broken = write_lines(here / "broken.jsonl", PROMPTS[:1])
    assert "no judge prompt single-math-v1" in refused(3, *call, *judge, *sets(f"benchmark.judge_prompts={broken}"))
    assert "need an endpoint" in refused(2, *call, *sets(f"benchmark.judge_prompts={prompts}"))


def test_results_that_are_there_stay_unless_they_may_be_replaced(refused: Any, spa: Spa, here: Path) -> None:
    arguments = ("one", "--benchmark", "alpaca_eval", "--prompts", "alpaca.json", *SMALL, "--out", "taken")
    (here / "taken").mkdir()
    (here / "taken" / "mine").write_text("precious")
    assert "overwrite: true" in refused(2, *arguments)
    assert (here / "taken" / "mine").read_text() == "precious"
    assert not list(here.glob("*.spa"))
    may = ("--set", "overwrite=true")
    assert "the folder holds mine" in refused(2, *arguments, *may)
    assert (here / "taken" / "mine").read_text() == "precious"
    (here / "taken" / "mine").unlink()
    for seed in ("1", "2"):
        replaced = spa("evaluate", *arguments, *may, "--set", f"seed={seed}")
        assert replaced.returncode == 0, replaced.stderr
    assert sorted(path.name for path in (here / "taken").iterdir()) == [MARKER, "model_outputs.json"]
    assert "overwrite: true" in refused(2, *arguments)
