"""`spa evaluate` and the benchmarks of a recipe, from the command line, on tiny models."""

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from spa_recipes import api
from spa_recipes.algo.winrate import confidence_interval
from spa_recipes.benchmark_job import run_benchmark
from spa_recipes.benchmarks import alpaca_eval
from spa_recipes.cli.progress import PlainReporter
from spa_recipes.recipe.schema import BenchmarkJob, ForkExecutor
from spa_recipes.report.benchmarks import benchmark_lines
from spa_recipes.run.executors import Executors
from spa_recipes.state.owned import MARKER
from tests.kit.benchmarks import PROMPTS, annotations, mt_files, needs_package, write_difficulty, write_lines
from tests.kit.cli import Answer, one_error, run_spa
from tests.kit.endpoint_server import EndpointServer, Reply
from tests.kit.recipes import mini, write_recipe

PAIR = {"type": "pairwise", "max_tokens": 9}
SMALL = ("--set", "model.max_length=200", "--set", "benchmark.max_tokens=24")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two untrained models, a reward model, and prompts of the sandbox in the forms of the benchmarks."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from spa_recipes.sandbox.model import build_model
    from spa_recipes.sandbox.rows import preference_rows

    folder = tmp_path_factory.mktemp("world")
    for seed, name in enumerate(("one", "two", "three", "four")):
        build_model(folder / name, hidden_size=32, intermediate_size=64, seed=seed)
    rewarder = AutoModelForSequenceClassification.from_pretrained(folder / "two", num_labels=1)
    rewarder.save_pretrained(folder / "rewarder")
    AutoTokenizer.from_pretrained(folder / "two").save_pretrained(folder / "rewarder")
    texts = list(dict.fromkeys(str(row["prompt"]) for row in preference_rows(12, seed=0)))
    rows = [{"dataset": "made", "instruction": text, "output": "a b", "generator": "base"} for text in texts]
    (folder / "alpaca.json").write_text(json.dumps(rows))
    write_lines(folder / "prompts.jsonl", [{"prompt": text} for text in texts])
    return folder


@pytest.fixture
def here(world: Path, tmp_path: Path) -> Path:
    """A folder of the test's own with that in it."""
    shutil.copytree(world, tmp_path, dirs_exist_ok=True)
    return tmp_path


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- AlpacaEval


def logprobs(body: dict[str, Any]) -> Reply:
    """A judge that finds the first answer better with probability 0.9, in the form that the annotator asks for."""
    tops = [{"token": token, "logprob": math.log(p), "bytes": None} for token, p in (("m", 0.9), ("M", 0.1))]
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": "m"},
        "logprobs": {"content": [{**tops[0], "top_logprobs": tops}]},
    }
    usage = {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}
    return Reply(body=json.dumps({"id": "1", "object": "chat.completion", "choices": [choice], "usage": usage}))


@needs_package
def test_alpaca_eval_from_the_model_to_the_rates_and_its_annotator_is_paid_once(here: Path) -> None:
    """The answers, the package's own annotator behind a local server that fails once, and both rates."""
    annotator = "weighted_alpaca_eval_gpt4_turbo"
    prompts = read(here / "alpaca.json")
    write_difficulty(here / "hf", len(prompts))
    arguments = (
        "evaluate",
        "one",
        "--benchmark",
        "alpaca_eval",
        "--prompts",
        "alpaca.json",
        "--set",
        "name=mine",
        *SMALL,
    )
    answers_only = run_spa(here, *arguments, "--out", "answers")
    assert answers_only.returncode == 0, answers_only.stderr
    assert "--set benchmark.annotator=NAME" in answers_only.stdout.splitlines()[-1]
    outputs = read(here / "answers" / "model_outputs.json")
    assert [set(row) for row in outputs] == [{"dataset", "instruction", "output", "generator"}] * len(prompts)
    assert [row["instruction"] for row in outputs] == [row["instruction"] for row in prompts]
    assert {row["generator"] for row in outputs} == {"mine"}
    assert sorted(path.name for path in (here / "answers").iterdir()) == [MARKER, "model_outputs.json"]
    assert MARKER not in answers_only.stdout
    assert not (here / "answers.spa").exists()

    broken = True
    with EndpointServer(lambda body: Reply(400, "{}") if broken else logprobs(body)) as server:
        variables = {"OPENAI_API_KEY": "key", "OPENAI_API_BASE": server.base_url, "HF_HOME": str(here / "hf")}
        call = (*arguments, "--set", f"benchmark.annotator={annotator}", "--out", "rates")
        failed = run_spa(here, *call, **variables)
        assert failed.returncode == 1
        assert failed.stderr.startswith("error: alpaca-eval-annotations")
        assert len(failed.stderr.strip().splitlines()) == 1
        assert not (here / "rates").exists()
        broken = False
        before = len(server.asked)
        done = run_spa(here, *call, **variables)
        assert done.returncode == 0, done.stderr
        assert len(server.asked) - before == len(prompts)
    assert "alpaca-eval-answers done before" in done.stdout
    made = read(here / "rates" / annotator / "annotations.json")
    scores = read(here / "rates" / "scores.json")
    assert [row["output_2"] for row in made] == [row["output"] for row in outputs]
    assert {round(row["preference"], 9) for row in made} == {1.1, 1.9}  # the order is the annotator's choice
    plain = math.fsum(row["preference"] - 1 for row in made) / len(made)
    assert scores["win_rate"] == pytest.approx(100 * plain, abs=1e-9)
    assert f"alpaca-eval: win rate {plain:.2%}" in done.stdout
    assert f"length-controlled {scores['length_controlled_winrate'] / 100:.2%}" in done.stdout


@needs_package
def test_annotations_are_scored_without_model_key_or_network(here: Path) -> None:
    rows = annotations(50)
    (here / "annotations.json").write_text(json.dumps(rows))
    call = ("evaluate", "--annotations", "annotations.json")
    without = run_spa(here, *call, HF_HOME=str(here / "none"))
    assert without.returncode == 0, without.stderr
    assert without.stderr == ""
    assert "length_controlled_winrate" not in without.stdout
    (missing,) = [line for line in without.stdout.splitlines() if "df_gamed.csv" in line]
    assert "hf download tatsu-lab/alpaca_eval df_gamed.csv --repo-type dataset" in missing
    write_difficulty(here / "hf", 50)
    cached = run_spa(here, *call, "--out", "scores", HF_HOME=str(here / "hf"))
    assert cached.returncode == 0, cached.stderr
    figures = read(here / "scores" / "scores.json")
    assert figures["win_rate"] == pytest.approx(2 * sum(row["preference"] - 1 for row in rows), abs=1e-9)
    assert f"length_controlled_winrate  {figures['length_controlled_winrate']}" in cached.stdout


# --- MT-Bench


def grade(body: dict[str, Any]) -> str:
    """Grades by what it is asked: 3 for a question with a reference, 6 for a second turn, none for question 150."""
    text = body["messages"][1]["content"]
    if "chess" in text:
        return "no idea"
    return "so [[3]]" if "R ref" in text else "so [[6]]" if text.count("Q ") == 2 else "so [[8]]"


def test_mt_bench_answers_two_turns_and_goes_on_with_its_judgments(here: Path) -> None:
    (here / "mt").mkdir()
    questions, prompts, _ = mt_files(here / "mt")
    ask = "in detail , please help me choose the right things for {} . it is for my uncle ."
    rows: list[dict[str, Any]] = [
        {"question_id": 81, "category": "writing", "turns": [ask.format("gardens"), ask.format("cheese")]},
        {"question_id": 111, "category": "math", "turns": [ask.format("soup"), ask.format("weather")]},
        {"question_id": 150, "category": "stem", "turns": [ask.format("chess")]},
    ]
    write_lines(questions, rows)
    references = [{"question_id": 111, "choices": [{"index": 0, "turns": ["ref one", "ref two"]}]}]
    write_lines(here / "mt" / "gpt-4.jsonl", references)
    broken = True
    with EndpointServer(lambda body: Reply(400, "{}") if broken else grade(body), key="secret") as server:
        job = {
            "model": {"model_name_or_path": "one", "max_length": 200},
            "benchmark": {
                "type": "mt_bench",
                "max_tokens": 24,
                "questions": str(questions),
                "judge_prompts": str(prompts),
                "reference_answers": "mt/gpt-4.jsonl",
                "endpoint": {"base_url": server.base_url, "model": "org/judge", "api_key_env": "MY_KEY"},
            },
            "out": "mt/out",
        }
        call = ("evaluate", write_recipe(here / "job.yaml", job))
        no_key = run_spa(here, *call)
        assert no_key.returncode == 2
        assert "MY_KEY" in no_key.stderr
        assert not server.asked
        failed = run_spa(here, *call, MY_KEY="secret")
        assert failed.returncode == 3, failed.stderr
        broken = False
        before = len(server.asked)
        done = run_spa(here, *call, MY_KEY="secret")
        asked = server.asked[before:]
    assert done.returncode == 0, done.stderr
    assert "mt-bench-answers   done before" in done.stdout
    answers = lines_of(here / "mt" / "out" / "model_answer" / "one.jsonl")
    assert [(row["question_id"], row["model_id"]) for row in answers] == [(81, "one"), (111, "one"), (150, "one")]
    assert [len(row["choices"][0]["turns"]) for row in answers] == [2, 2, 1]
    judgments = lines_of(here / "mt" / "out" / "model_judgment" / "org_judge_single.jsonl")
    assert {(row["question_id"], row["turn"]): row["score"] for row in judgments} == {
        (81, 1): 8,
        (111, 1): 3,
        (150, 1): -1,
        (81, 2): 6,
        (111, 2): 3,
    }
    # The second turn is graded with the first one and its answer in view.
    second = next(row for row in judgments if (row["question_id"], row["turn"]) == (81, 2))
    for text in [*rows[0]["turns"], *answers[0]["choices"][0]["turns"]]:
        assert text in second["user_prompt"]
    assert len(asked) == 5
    assert {(body["temperature"], body["max_tokens"], body["model"]) for body in asked} == {(0.0, 2048, "org/judge")}
    assert asked[0]["messages"][0]["content"].startswith("system of single-")
    scores = read(here / "mt" / "out" / "scores.json")
    assert scores["score"] == 5.0
    assert scores["turns"] == {"1": 5.5, "2": 4.5}
    assert scores["categories"] == {"writing": 7.0, "math": 3.0, "stem": None}
    assert scores["unrated"] == 1
    assert "mt-bench: 5.00 (turn 1 5.50, turn 2 4.50); writing 7.00, math 3.00, stem -; 1 of 5 judgments" in done.stdout
    assert "secret" not in done.stdout + "".join(
        path.read_text() for path in (here / "mt" / "out").rglob("*") if path.is_file()
    )


# --- pairwise


@pytest.fixture(scope="module")
def executors() -> Iterator[Executors]:
    """One import of the libraries for all tests that run stages."""
    shared = Executors(ForkExecutor(type="fork"))
    yield shared
    shared.close()


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


# --- the command line


@pytest.fixture
def refused(spa_here: Any, here: Path) -> Any:
    """Calls `spa evaluate` and gives back the one line of its error."""

    def call(code: int, *arguments: str) -> str:
        answer: Answer = spa_here("evaluate", *arguments)
        return one_error(answer, code)

    return call


def sets(*keys: str) -> list[str]:
    """`--set` for each of some `key=value` texts."""
    return [part for key in keys for part in ("--set", key)]


def test_mistakes_are_one_line(refused: Any, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    alpaca = ("--benchmark", "alpaca_eval", "--prompts", "alpaca.json", *SMALL)
    assert refused(2, "one", "--benchmark", "arena").startswith("--benchmark: benchmark.type: must be one of alpaca_")
    assert refused(2, "one").startswith("--benchmark: is needed; choose one of alpaca_eval, mt_bench, pairwise")
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


def test_results_that_are_there_stay_unless_they_may_be_replaced(refused: Any, spa_here: Any, here: Path) -> None:
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
        replaced = spa_here("evaluate", *arguments, *may, "--set", f"seed={seed}")
        assert replaced.code == 0, replaced.err
    assert sorted(path.name for path in (here / "taken").iterdir()) == [MARKER, "model_outputs.json"]
    assert "overwrite: true" in refused(2, *arguments)


# --- recipes


def test_a_recipe_runs_benchmarks_on_its_final_policy_and_shows_them(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(here)
    questions, judge_prompts, references = mt_files(here)
    ask = "in detail , please help me choose the right things for gardens . it is for my uncle ."
    write_lines(questions, [{"question_id": 1, "category": "writing", "turns": [ask, ask]}])
    answering = {"max_tokens": 16}
    with EndpointServer(lambda body: "[[4]]") as server:
        benchmarks = [
            {"type": "alpaca_eval", "prompts": "alpaca.json", **answering},
            {
                "type": "mt_bench",
                "questions": questions.name,
                "judge_prompts": judge_prompts.name,
                "reference_answers": references.name,
                "endpoint": server.endpoint(),
                **answering,
            },
            {"type": "pairwise", "judge": {"type": "gold"}, **answering},
            {"type": "pairwise", **answering},
        ]
        recipe = write_recipe(
            here / "mini.yaml",
            mini(data={"prompts_per_iteration": []}, evaluation={"benchmarks": benchmarks}),
        )
        prepared = api.prepare(recipe, run_dir=here / "runs" / "mini")
        ids = [stage.id for stage in prepared.plan.stages]
        assert ids[ids.index("evaluate-0") + 1 :] == [
            "alpaca-eval-answers",
            "mt-bench-answers",
            "mt-bench",
            "pairwise-ours",
            "pairwise-theirs",
            "pairwise-versus",
            "pairwise",
            "pairwise-2-ours",
            "pairwise-2-theirs",
            "pairwise-2-versus",
            "pairwise-2-candidates",
            "pairwise-2-policy",
            "pairwise-2-reference",
            "pairwise-2",
        ]
        done = run_spa(here, "run", recipe)
        assert done.returncode == 0, done.stderr
    status = run_spa(here, "status", "mini")
    for shown in (done.stdout, status.stdout):
        assert "mt-bench: 4.00 (turn 1 4.00, turn 2 4.00); writing 4.00" in shown
        assert "pairwise: win rate" in shown
        assert "pairwise-2: win rate" in shown
    assert run_spa(here, "report", "mini").returncode == 0
    page = (here / "runs" / "mini" / "report.html").read_text()
    assert "mt-bench: 4.00" in page
    # A finished run is a MODEL by its name.
    keys = sets("model.max_length=128", "benchmark.max_tokens=16", "model.dtype=float32", "seed=7")
    alone = run_spa(here, "evaluate", "mini", "--benchmark", "alpaca_eval", "--prompts", "alpaca.json", *keys)
    assert alone.returncode == 0, alone.stderr
    (stage,) = [stage for stage in prepared.plan.stages if stage.id == "alpaca-eval-answers"]
    by_recipe = prepared.run.stage_dir(stage, prepared.plan).output / "model_outputs.json"
    assert read(here / "evaluations" / "mini-alpaca_eval" / "model_outputs.json") == read(by_recipe)


@pytest.mark.parametrize(
    ("benchmark", "words"),
    [
        (
            {"type": "alpaca_eval", "max_tokens": 500},
            r"0.max_tokens: max_tokens \(500\) must be smaller than model.max_l",
        ),
        ({"type": "mt_bench"}, "questions"),
        ({"type": "mt_bench", "questions": "q", "judge_prompts": "p"}, "need an endpoint"),
        (
            {"type": "pairwise", "max_tokens": 9, "judge": {"type": "gold"}, "prompts": {"source": "p"}},
            "leave out prompts",
        ),
        ({**PAIR, "judge": {"policy": "p"}}, "belong together"),
        ({**PAIR, "judge": {"type": "llm"}}, "give it model_name_or_path or endpoint"),
        ({"type": "arena"}, "arena"),
        ({"type": "alpaca_eval", "questions": "q"}, "unknown key; allowed for type alpaca_eval"),
        (5, "must be a section with a type"),
        ({}, "type"),
    ],
)
def test_a_recipe_with_a_wrong_benchmark_is_refused(spa_here: Any, tmp_path: Path, benchmark: Any, words: str) -> None:
    recipe = write_recipe(tmp_path / "mini.yaml", mini(evaluation={"benchmarks": [benchmark]}))
    answer = spa_here("validate", recipe)
    assert answer.code == 2
    assert "Traceback" not in answer.err
    assert re.search(words, answer.err), answer.err


def test_benchmarks_leave_the_keys_of_other_stages_alone(tmp_path: Path) -> None:
    without = api.prepare(write_recipe(tmp_path / "a.yaml", mini()), run_dir=tmp_path / "a").plan
    pair = {"type": "pairwise", "max_tokens": 16, "judge": {"type": "gold"}}
    with_one = write_recipe(tmp_path / "b.yaml", mini(evaluation={"benchmarks": [pair]}))
    more = api.prepare(with_one, run_dir=tmp_path / "b").plan
    assert [stage.key for stage in more.stages[: len(without.stages)]] == [stage.key for stage in without.stages]
    assert len(more.stages) == len(without.stages) + 4
