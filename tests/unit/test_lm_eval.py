"""Tasks of lm-eval: how they are planned, found and agreed to, and what is made of the package's results."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from spa_recipes.benchmarks.lm_eval import check_tasks, local_names, read_results
from spa_recipes.data.rows import write_jsonl
from spa_recipes.errors import DataError
from spa_recipes.plan import KINDS
from spa_recipes.plan.powers import powers_of
from spa_recipes.recipe.schema import LmEval, Recipe
from spa_recipes.report.benchmarks import benchmark_lines
from spa_recipes.run import packages
from spa_recipes.stages import lm_eval_scores
from spa_recipes.state.stagedir import Manifest
from tests.kit.lm_tasks import write_task
from tests.kit.plans import plan_of
from tests.kit.recipes import mini
from tests.kit.stages import context_of
from tests.kit.state import FIELDS


def section(**settings: Any) -> dict[str, Any]:
    return {"evaluation": {"benchmarks": [{"type": "lm_eval", "tasks": ["pick"], **settings}]}}


# --- the plan


def test_pi_init_and_the_final_policy_are_both_measured(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "tasks")
    plan = plan_of(**section(include_path=str(folder)))
    ours, theirs, scores = plan.stages[-3:]
    assert [stage.id for stage in (ours, theirs, scores)] == ["lm-eval-ours", "lm-eval-theirs", "lm-eval"]
    assert (str(ours.inputs["policy"]), str(theirs.inputs["policy"])) == ("refine-2/model", "sft/model")
    assert scores.settings == {"against": "pi_init"}
    assert KINDS["lm_eval_scores"].delivers


def test_what_decides_the_result_is_in_the_key_and_nothing_else(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "tasks")

    def key(**settings: Any) -> str:
        return plan_of(**section(include_path=str(folder), **settings)).stage("lm-eval-ours").key

    before = key()
    assert key(batch_size=3) == before
    for settings in ({"num_fewshot": 2}, {"limit": 5}, {"apply_chat_template": True}, {"max_length": 64}):
        assert key(**settings) != before, settings
    moved = folder.rename(tmp_path / "moved")
    assert plan_of(**section(include_path=str(moved))).stage("lm-eval-ours").key == before
    with (moved / "pick.jsonl").open("a") as rows:
        rows.write("\n")
    assert plan_of(**section(include_path=str(moved))).stage("lm-eval-ours").key != before


def test_it_moves_no_key_of_the_run() -> None:
    without, with_it = plan_of(), plan_of(**section())
    assert [stage.key for stage in with_it.stages[: len(without.stages)]] == [stage.key for stage in without.stages]
    assert len(with_it.stages) == len(without.stages) + 3


def test_code_in_task_files_is_asked_for_again_when_it_changes(tmp_path: Path) -> None:
    folder, digests = write_task(tmp_path / "tasks"), []
    for code in ("def f(doc): return 1", "def f(doc): return 2"):
        (folder / "own.py").write_text(code)
        powers = powers_of(plan_of(**section(include_path=str(folder))), tmp_path / "run")
        assert [power.key for power in powers.asked] == ["evaluation.benchmarks.0.include_path"]
        digests.append(powers.digest)
    assert digests[0] != digests[1]
    assert not powers_of(plan_of(**section()), tmp_path / "run").asked


# --- what is missing


def test_the_package_is_named_before_the_first_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe.model_validate(mini(**section()))
    monkeypatch.setattr(packages, "is_installed", lambda name: name != "lm_eval")
    assert [str(problem) for problem in packages.missing_packages(recipe)] == [
        "evaluation.benchmarks.0.type: the package lm-eval is not installed here; pip install 'spa-recipes[lm_eval]', "
        "or leave this benchmark out"
    ]


def test_tasks_of_the_package_are_found_by_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is a folder here: its files are read, and none of its code is imported."""
    write_task(tmp_path / "lm_eval" / "tasks" / "some", tag="easy")
    (tmp_path / "lm_eval" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("pick", "easy"):
        check_tasks(LmEval(type="lm_eval", tasks=[name]), "benchmark")
    with pytest.raises(DataError) as caught:
        check_tasks(LmEval(type="lm_eval", tasks=["pick", "pic"]), "benchmark")
    assert str(caught.value).startswith("benchmark.tasks: no task, group or tag 'pic' in lm-eval; `lm-eval ls tasks`")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("bad.yaml", "task: x\n  y: [", r"include_path: .*bad.yaml:2: no YAML"),
        ("list.yaml", "- task", "list.yaml: not a mapping"),
        (".hidden.yaml", "task: x", "hidden.yaml: a hidden task file"),
        (
            "far.yaml",
            "task: far\ndataset_path: json\ndataset_kwargs: {data_files: {test: FAR}}",
            "outside of this folder",
        ),
        ("no.yaml", "task: far\ndataset_path: json\ndataset_kwargs: {data_files: {test: none.jsonl}}", "not there"),
    ],
)
def test_a_broken_task_file_gets_one_line_with_its_key(tmp_path: Path, name: str, text: str, words: str) -> None:
    folder = write_task(tmp_path / "tasks")
    (tmp_path / "far.jsonl").write_text("{}\n")
    check_tasks(LmEval(type="lm_eval", tasks=["pick"], include_path=str(folder)), "benchmark")
    (folder / name).write_text(text.replace("FAR", str(tmp_path / "far.jsonl")))
    with pytest.raises(DataError, match=words) as caught:
        check_tasks(LmEval(type="lm_eval", tasks=["pick"], include_path=str(folder)), "benchmark")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("benchmark.include_path: ")


def test_looking_at_task_files_runs_none_of_their_code(tmp_path: Path) -> None:
    folder = write_task(tmp_path / "tasks", process_docs="!function own.f")
    (folder / "own.py").write_text(f"open({str(tmp_path / 'it-ran')!r}, 'w')\ndef f(docs): return docs\n")
    assert local_names(folder) == {"pick"}
    assert not (tmp_path / "it-ran").exists()


# --- results


def package_results(right: list[float], **more: Any) -> dict[str, Any]:
    """What `simple_evaluate` of the package returns, for a group of two tasks; `right` are their rows."""
    half = len(right) // 2
    parts = {"one": right[:half], "two": right[half:]}

    def metrics(values: list[float]) -> dict[str, Any]:
        return {
            "alias": "x",
            "acc,none": sum(values) / len(values),
            "acc_stderr,none": "N/A",
            "sample_len": len(values),
        }

    return {
        "results": {name: metrics(values) for name, values in parts.items()},
        "groups": {"both": metrics(right)},
        "group_subtasks": {"both": ["one", "two"]},
        "versions": {"one": 1, "two": 1},
        "n-shot": {"one": 0, "two": 0},
        "higher_is_better": {"one": {"acc": True}},
        "n-samples": {name: {"original": 9, "effective": len(values)} for name, values in parts.items()},
        "samples": {
            name: [
                {"doc_id": i, "filter": "none", "target": 0, "filtered_resps": [(-1.0, False)],
                 "metrics": ["acc", "f1"], "acc": value, "f1": (0, 1), "arguments": [("a", "b")]}
                for i, value in enumerate(values)
            ]
            for name, values in parts.items()
        },
        **more,
    }  # fmt: skip


OURS, THEIRS = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 1.0, 0.0, 1.0]


def test_a_result_keeps_numbers_and_shows_what_was_asked_for() -> None:
    results, samples, _ = read_results(package_results(OURS))
    assert {name: result["shown"] for name, result in results.items()} == {"one": False, "two": False, "both": True}
    assert results["both"]["metrics"] == {"acc,none": {"value": 0.5, "stderr": None}}
    assert [row["metrics"] for row in samples[:2]] == [{"acc": 1.0}, {"acc": 0.0}]
    of_tag, _, _ = read_results(package_results(OURS, groups={}, group_subtasks={"tag": ["one", "two"]}))
    assert all(result["shown"] for result in of_tag.values())
    one = {"acc,none": 0.25, "acc_stderr,none": 0.1, "ppl,none": math.nan, "name": "one"}
    found, _, _ = read_results(package_results(OURS, results={"one": one}, groups={}, group_subtasks={}))
    assert found["one"]["metrics"] == {"acc,none": {"value": 0.25, "stderr": 0.1}}


def test_the_difference_has_the_paired_standard_error_by_a_plain_loop() -> None:
    (ours, rows, _), (theirs, other_rows, _) = (
        read_results(package_results(OURS)),
        read_results(package_results(THEIRS)),
    )
    score = lm_eval_scores.score(ours, rows, theirs, other_rows)["both"]["acc,none"]
    differences = [a - b for a, b in zip(OURS, THEIRS, strict=True)]
    mean = sum(differences) / 6
    sd = math.sqrt(sum((d - mean) ** 2 for d in differences) / 5)
    assert score["difference"] == pytest.approx(mean)
    assert score["difference_stderr"] == pytest.approx(sd / math.sqrt(6))
    # A metric that is no mean over these rows has no such error.
    ours["both"]["metrics"]["acc,none"]["value"] = 0.9
    assert lm_eval_scores.score(ours, rows, theirs, other_rows)["both"]["acc,none"]["difference_stderr"] is None
    # Neither have other rows.
    fewer = lm_eval_scores.score(ours, rows, theirs, other_rows[1:])
    assert fewer["one"]["acc,none"]["difference_stderr"] is None


def test_scores_and_both_answers_are_written_and_told(tmp_path: Path) -> None:
    inputs: dict[str, Path] = {}
    for side, right in (("ours", OURS), ("theirs", THEIRS)):
        results, samples, _ = read_results(package_results(right))
        (tmp_path / f"{side}.json").write_text(json.dumps(results))
        write_jsonl(tmp_path / f"{side}.jsonl", samples)
        inputs |= {side: tmp_path / f"{side}.json", f"{side}_samples": tmp_path / f"{side}.jsonl"}
    context = context_of(tmp_path / "s", "lm_eval_scores", settings={"against": "pi_init"}, inputs=inputs)
    done = lm_eval_scores.run(context)
    written = json.loads((context.draft / "scores.json").read_text())
    assert written["tasks"]["both"]["metrics"]["acc,none"]["other"] == pytest.approx(4 / 6)
    first = json.loads((context.draft / "samples.jsonl").read_text().splitlines()[1])
    assert (first["metrics"], first["other_metrics"]) == ({"acc": 0.0}, {"acc": 1.0})
    manifest = Manifest(**{**FIELDS, "kind": "lm_eval_scores", "metrics": done.metrics}, files={})
    (line,) = benchmark_lines({"lm-eval": manifest})
    assert line == "lm-eval: both: acc 0.5, pi_init 0.6667, difference -0.1667 ± 0.31"
