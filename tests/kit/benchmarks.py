"""Made-up inputs of the benchmarks, in the forms of the packages behind them."""

import csv
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from spa_recipes.benchmarks import alpaca_eval, mt_bench
from tests.kit.endpoint_server import Reply

needs_package = pytest.mark.skipif(not alpaca_eval.is_installed(), reason="the extra `eval` is not installed")


def annotations(count: int = 60, seed: int = 0, length_matters: bool = False) -> list[dict[str, Any]]:
    """Rows in the package's form; with `length_matters`, the longer answer is preferred and nothing else counts."""
    draw = random.Random(seed)
    rows = []
    for i in range(count):
        ours, theirs = draw.randint(20, 200), draw.randint(20, 120)
        likes_longer = 1 / (1 + math.exp(-(ours - theirs) / 20))
        rows.append(
            {
                "instruction": f"question {i}",
                "dataset": "made",
                "output_1": "b" * theirs,
                "generator_1": "base",
                "output_2": "a" * ours,
                "generator_2": "mine",
                "annotator": "weighted_alpaca_eval_gpt4_turbo",
                "preference": 1 + likes_longer if length_matters else draw.choice([1.0, 2.0, 1.5, 1 + draw.random()]),
            }
        )
    return rows


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


def write_difficulty(hf_home: Path, count: int, seed: int = 0) -> Path:
    """The file that the package asks the Hub for, made up and put where the cache would have it."""
    draw = random.Random(seed)
    revision = "0" * 40
    root = hf_home / "hub" / "datasets--tatsu-lab--alpaca_eval"
    folder = root / "snapshots" / revision
    folder.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(revision)
    with (folder / "df_gamed.csv").open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(
            ["model", "preference", "index", "std_delta_len", "instruction_difficulty", "not_gamed_baseline"]
        )
        difficulty = [draw.gauss(0, 1) for _ in range(count)]
        for model, shift in (("concise", -1.0), ("verbose", 1.0)):
            for index in range(count):
                length = draw.gauss(shift, 0.5)
                writer.writerow([model, 1 / (1 + math.exp(length)), index, length, difficulty[index], False])
    return folder / "df_gamed.csv"


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


PROMPTS = [
    {
        "name": name,
        "type": "single",
        "system_prompt": f"system of {name}",
        "prompt_template": template,
        "output_format": "[[rating]]",
    }
    for name, template in (
        ("single-v1", "Q {question} A {answer}"),
        ("single-math-v1", "Q {question} R {ref_answer_1} A {answer}"),
        ("single-v1-multi-turn", "Q {question_1} A {answer_1} Q {question_2} A {answer_2}"),
        ("single-math-v1-multi-turn", "R {ref_answer_1} {ref_answer_2} A {answer_1} {answer_2} Q {question_2}"),
    )
]
"""Judge prompts in FastChat's form, with the fields of the published ones."""
QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["write {answer}", "again"]},
    {"question_id": 111, "category": "math", "turns": ["1 + 1", "and 2 + 2"]},
    {"question_id": 150, "category": "other", "turns": ["alone"]},
]


def mt_files(folder: Path) -> tuple[Path, Path, Path]:
    """Questions, judge prompts and reference answers."""
    references = [mt_bench.answer_row(mt_bench.Question(111, "math", ("", "")), ["two", "four"], "gpt-4", 1.0)]
    return (
        write_lines(folder / "question.jsonl", QUESTIONS),
        write_lines(folder / "judge_prompts.jsonl", [{"name": "pair-v2", "type": "pairwise"}, *PROMPTS]),
        write_lines(folder / "gpt-4.jsonl", references),
    )
