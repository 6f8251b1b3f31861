"""The benchmarks of a recipe, on its final policy."""

import re
from pathlib import Path
from typing import Any

import pytest

from spa_recipes import api
from tests.kit.benchmark_world import read, sets
from tests.kit.benchmarks import mt_files, write_lines
from tests.kit.cli import run_spa
from tests.kit.endpoint_server import EndpointServer
from tests.kit.recipes import mini, write_recipe

PAIR = {"type": "pairwise", "max_tokens": 9}


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
