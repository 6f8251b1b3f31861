"""`spa evaluate` for a win rate against another model, by each judge."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spa_recipes.algo.winrate import confidence_interval
from spa_recipes.benchmark_job import run_benchmark
from spa_recipes.cli.progress import PlainReporter
from spa_recipes.recipe.jobs import BenchmarkJob
from spa_recipes.report.benchmarks import benchmark_lines
from spa_recipes.run.executors import Executors
from tests.kit.benchmark_world import lines_of, read
from tests.kit.endpoint_server import EndpointServer

Pairwise = Callable[..., tuple[list[dict[str, Any]], dict[str, Any]]]


@pytest.fixture
def pairwise(here: Path, executors: Executors, monkeypatch: pytest.MonkeyPatch) -> Pairwise:
    """Outcomes and scores of model `one` against `two`, by a judge."""
    monkeypatch.chdir(here)

    def run(**judge: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        job = {
            "model": {"model_name_or_path": "one", "max_length": 200},
            "benchmark": {
                "type": "pairwise",
                "against": "two",
                "prompts": {"source": "prompts.jsonl"},
                "max_tokens": 24,
                "judge": judge,
            },
            "out": str(here / "out"),
        }
        with PlainReporter() as reporter:
            done = run_benchmark(BenchmarkJob.model_validate(job), reporter, executors)
        rows, scores = lines_of(here / "out" / "outcomes.jsonl"), read(here / "out" / "scores.json")
        mean = sum(row["outcome"] for row in rows) / len(rows)
        assert scores["prompts"] == len(rows) == len(lines_of(here / "prompts.jsonl"))
        assert scores["pairwise_win_rate"] == pytest.approx(mean)
        assert (scores["pairwise_low"], scores["pairwise_high"]) == confidence_interval(
            [row["outcome"] for row in rows]
        )
        (line,) = benchmark_lines(done.manifests)
        assert line.startswith(f"pairwise: win rate {mean:.1%} (95 %: {scores['pairwise_low']:.1%} to")
        assert not (here / "out.spa").exists()
        return rows, scores

    return run


def expected(rewards: list[float]) -> float:
    return 0.5 if rewards[0] == rewards[1] else float(rewards[0] > rewards[1])


def test_pairwise_by_the_gold_reward(pairwise: Pairwise) -> None:
    from spa_recipes.sandbox.gold import gold_reward

    rows, scores = pairwise(type="gold")
    for row in rows:
        rewards = [gold_reward(row["prompt"][-1]["content"], text) for text in row["responses"]]
        assert row["orders"] == [expected(rewards)] * 2
    assert scores["order_decides"] == 0


def test_pairwise_by_a_reward_model(pairwise: Pairwise, here: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    rows, _ = pairwise(type="reward_model", model_name_or_path="rewarder")
    model = AutoModelForSequenceClassification.from_pretrained(here / "rewarder").eval()
    tokenizer = AutoTokenizer.from_pretrained(here / "rewarder")
    for row in rows:
        rewards = []
        for text in row["responses"]:
            conversation = [*row["prompt"], {"role": "assistant", "content": text}]
            ids = tokenizer(tokenizer.apply_chat_template(conversation, tokenize=False), add_special_tokens=False)
            with torch.no_grad():
                rewards.append(model(torch.tensor([ids["input_ids"]])).logits.item())
        assert row["outcome"] == expected(rewards)
    assert len({row["outcome"] for row in rows}) > 1  # both sides won something, or nothing was shown


def test_pairwise_by_the_implicit_reward(pairwise: Pairwise, here: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows, _ = pairwise(policy="three", reference="four")
    tokenizer = AutoTokenizer.from_pretrained(here / "one")
    models = [AutoModelForCausalLM.from_pretrained(here / name).eval() for name in ("three", "four")]

    def logp(model: Any, prompt: list[int], response: list[int]) -> float:
        with torch.no_grad():
            logits = model(torch.tensor([prompt + response])).logits[0].double().log_softmax(-1)
        return float(sum(logits[len(prompt) - 1 + i, token] for i, token in enumerate(response)))

    for row in rows:
        prompt = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
        prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        rewards = []
        for text in row["responses"]:
            response = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            rewards.append(logp(models[0], prompt_ids, response) - logp(models[1], prompt_ids, response))
        assert row["outcome"] == expected(rewards)
    assert len({row["outcome"] for row in rows}) > 1  # both sides won something, or nothing was shown


def test_pairwise_by_a_language_model_asks_in_both_orders(pairwise: Pairwise) -> None:
    def shown(body: dict[str, Any]) -> list[str]:
        text = body["messages"][-1]["content"]
        return [text.split(f"<answer_{place}>")[1].split(f"</answer_{place}>")[0].strip() for place in "AB"]

    def ends_late(text: str) -> bool:
        return text[-1] > "l"

    def judge(body: dict[str, Any]) -> str:
        """Prefers the answer that ends in a late letter, and the first place where both do or neither does."""
        a, b = map(ends_late, shown(body))
        return "[[B]]" if b and not a else "[[A]]"

    with EndpointServer(judge) as server:
        rows, scores = pairwise(type="llm", endpoint={"base_url": server.base_url, "model": "m", "api_key_env": None})
        asked = [tuple(shown(body)) for body in server.asked]
    for row in rows:
        ours, theirs = (text.strip() for text in row["responses"])
        assert {(ours, theirs), (theirs, ours)} <= set(asked)
        same = ends_late(ours) == ends_late(theirs)
        assert row["orders"] == ([1.0, 0.0] if same else [float(ends_late(ours))] * 2)
        assert row["outcome"] == sum(row["orders"]) / 2
    assert len(asked) == 2 * len(rows)
    assert 0 < scores["order_decides"] < len(rows)
    assert scores["order_decides"] == sum(row["orders"] == [1.0, 0.0] for row in rows)
