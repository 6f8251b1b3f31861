"""Tasks of lm-eval by the real package, from local files and without a network: in a recipe, and by `spa evaluate`."""

import contextlib
from pathlib import Path
from typing import Any

import pytest

from spa_recipes import api
from spa_recipes.run.packages import is_installed
from tests.kit.benchmark_world import lines_of, read, sets
from tests.kit.cli import run_fresh
from tests.kit.lm_tasks import write_task
from tests.kit.recipes import mini, write_recipe

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_installed("lm_eval"), reason="the extra `lm_eval` is not installed"),
]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a run without iterations has been measured before and after its training."""
    folder = tmp_path_factory.mktemp("lm_eval")
    write_task(folder / "tasks")
    benchmark = {"type": "lm_eval", "tasks": ["pick"], "include_path": "tasks", "num_fewshot": 0}
    changes: dict[str, Any] = {"data": {"prompts_per_iteration": []}, "evaluation": {"benchmarks": [benchmark]}}
    write_recipe(folder / "mini.yaml", mini(**changes))
    refused = run_fresh(folder, "run", "mini.yaml")
    assert refused.returncode == 2
    assert "the Python code that the task files in tasks name (evaluation.benchmarks.0.include_path)" in refused.stderr
    done = run_fresh(folder, "run", "mini.yaml", "--trust")
    assert done.returncode == 0, done.stderr + done.stdout
    assert "lm-eval: pick: acc 0." in done.stdout
    return folder


def output_of(run: Path, stage: str) -> Path:
    with contextlib.chdir(run):
        prepared = api.prepare(run / "mini.yaml", run_dir=run / "runs" / "mini")
    return prepared.run.stage_dir(prepared.plan.stage(stage), prepared.plan).output


def test_a_run_says_what_the_alignment_cost(ran: Path) -> None:
    output = output_of(ran, "lm-eval")
    score = read(output / "scores.json")["tasks"]["pick"]["metrics"]["acc,none"]
    rows = lines_of(output / "samples.jsonl")
    for value, key in ((score["value"], "metrics"), (score["other"], "other_metrics")):
        assert value == sum(row[key]["acc"] for row in rows) / 8
    assert score["difference"] == score["value"] - score["other"]
    assert score["difference_stderr"] is not None
    assert score["stderr"] > 0
    line = next(text for text in run_fresh(ran, "status", "mini").stdout.splitlines() if "lm-eval: pick" in text)
    assert "pi_init 0." in line
    assert f"pick: acc {score['value']:.4g}" in (ran / "runs" / "mini" / "final" / "README.md").read_text()


def test_spa_evaluate_says_the_same_of_the_same_models(ran: Path) -> None:
    init = output_of(ran, "sft") / "model"
    keys = sets(
        *("benchmark.tasks=[pick]", "benchmark.include_path=tasks"),
        *("model.max_length=128", "model.dtype=float32"),
    )
    done = run_fresh(ran, "evaluate", "mini", "--benchmark", "lm_eval", "--against", init, *keys)
    assert done.returncode == 0, done.stderr + done.stdout
    found = read(ran / "evaluations" / "mini-lm_eval" / "scores.json")["tasks"]
    assert found == read(output_of(ran, "lm-eval") / "scores.json")["tasks"]


def test_a_task_that_fails_gets_one_line(ran: Path, tmp_path: Path) -> None:
    folder = write_task(tmp_path / "tasks", process_docs="!function own.f")
    (folder / "own.py").write_text("def f(docs):\n    raise KeyError('no such column')\n")
    keys = sets("benchmark.tasks=[pick]", f"benchmark.include_path={folder}", "model.max_length=128")
    done = run_fresh(ran, "evaluate", "mini", "--benchmark", "lm_eval", "--set", "out=broken", *keys)
    assert done.returncode == 3, done.stderr + done.stdout
    assert "task pick: lm-eval cannot do this task: KeyError: 'no such column'; correct its file" in done.stderr
    assert not (folder / "__pycache__").exists()
