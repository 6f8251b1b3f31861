"""`spa evaluate` for AlpacaEval and MT-Bench, from the command line, on tiny models."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from spa_recipes.state.marker import MARKER
from tests.kit.benchmark_world import lines_of, read
from tests.kit.benchmarks import annotations, logprobs, mt_files, needs_package, write_difficulty, write_lines
from tests.kit.cli import run_spa
from tests.kit.endpoint_server import EndpointServer, Reply
from tests.kit.recipes import write_recipe

SMALL = ("--set", "model.max_length=200", "--set", "benchmark.max_tokens=24")


# --- AlpacaEval


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
        no_key = run_spa(here, *call, "--trust")  # the key goes to a server of ours
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
