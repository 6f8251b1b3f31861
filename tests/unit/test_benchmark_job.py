"""Jobs of `spa evaluate`: what the command line makes of a model, options, `--set` and job files."""

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from spa_recipes import benchmark_job, job_output
from spa_recipes.cli import app as cli
from spa_recipes.cli import evaluate
from spa_recipes.errors import RecipeError
from spa_recipes.plan.benchmarks import compile_benchmark_plan
from spa_recipes.recipe.job import job_schema, load_job
from spa_recipes.recipe.jobs import BenchmarkJob
from spa_recipes.state.digests import DigestMemo

JobOf = Callable[..., dict[str, Any]]

MT_BENCH = """
model: {model_name_or_path: one}
benchmark:
  type: mt_bench
  questions: q.jsonl
  judge_prompts: p.jsonl
  reference_answers: r.jsonl
  endpoint: {base_url: "https://server/v1", model: grader}
"""
BASES = {
    "alpaca_eval": ["one", "--benchmark", "alpaca_eval", "--set", "name=base"],
    "mt_bench": ["mt.yaml"],
    "pairwise": [
        *("one", "--benchmark", "pairwise", "--against", "two", "--prompts", "p.jsonl"),
        *("--set", "benchmark.judge.policy=a", "--set", "benchmark.judge.reference=b"),
    ],
    "vllm": ["one", "--benchmark", "alpaca_eval", "--backend", "vllm"],
}
"""Command lines that the following ones add something to."""

SPELLINGS: list[tuple[str, str, list[str], str, Any]] = [
    ("alpaca_eval", "MODEL", ["--set", "model.model_name_or_path=other"], "model.model_name_or_path", "other"),
    ("alpaca_eval", "--out o", ["--out", "o"], "out", "o"),
    ("alpaca_eval", "--name n", ["--set", "name=n"], "name", "n"),
    ("alpaca_eval", "--prompts p", ["--prompts", "p"], "benchmark.prompts", "p"),
    ("pairwise", "--prompts p", ["--prompts", "p"], "benchmark.prompts.source", "p"),
    ("alpaca_eval", "--annotator a", ["--set", "benchmark.annotator=a"], "benchmark.annotator", "a"),
    ("mt_bench", "--questions q", ["--prompts", "q"], "benchmark.questions", "q"),
    ("mt_bench", "--questions q", ["--set", "benchmark.questions=q"], "benchmark.questions", "q"),
    ("mt_bench", "--judge-prompts p", ["--set", "benchmark.judge_prompts=p"], "benchmark.judge_prompts", "p"),
    ("mt_bench", "--reference-answers r", ["--set", "benchmark.reference_answers=r"],
     "benchmark.reference_answers", "r"),
    ("mt_bench", "--endpoint-url u", ["--set", "benchmark.endpoint.base_url=https://u"], "benchmark.endpoint.base_url",
     "https://u"),
    ("mt_bench", "--endpoint-model m", ["--set", "benchmark.endpoint.model=m"], "benchmark.endpoint.model", "m"),
    ("mt_bench", "--endpoint-key-env none", ["--set", "benchmark.endpoint.api_key_env=null"],
     "benchmark.endpoint.api_key_env", None),
    ("pairwise", "--against x", ["--against", "x"], "benchmark.against", "x"),
    ("pairwise", "--judge gold", ["--set", "benchmark.judge={type: gold}"], "benchmark.judge", {"type": "gold"}),
    ("pairwise", "--judge-policy m", ["--set", "benchmark.judge.policy=m"], "benchmark.judge.policy", "m"),
    ("pairwise", "--judge-reference m", ["--set", "benchmark.judge.reference=m"], "benchmark.judge.reference", "m"),
    ("pairwise", "--reward-model m", ["--set", "benchmark.judge={type: reward_model, model_name_or_path: m}"],
     "benchmark.judge", {"type": "reward_model", "model_name_or_path": "m", "revision": None}),
    ("pairwise", "--judge-model m", ["--set", "benchmark.judge={type: llm, model_name_or_path: m}"], "benchmark.judge",
     {"type": "llm", "mode": "pairs", "samples": 1, "model_name_or_path": "m", "revision": None, "chat_template": None,
      "chat_template_kwargs": {}, "endpoint": None, "prompt": None, "max_tokens": 512, "max_length": None,
      "max_unparsed": 0.5}),
    ("alpaca_eval", "--temperature 0.3", ["--set", "benchmark.temperature=0.3"], "benchmark.temperature", 0.3),
    ("pairwise", "--temperature 0.3", ["--set", "benchmark.temperature=0.3"], "benchmark.temperature", 0.3),
    ("mt_bench", "--top-p 0.9", ["--set", "benchmark.top_p=0.9"], "benchmark.top_p", 0.9),
    ("mt_bench", "--max-tokens 50", ["--set", "benchmark.max_tokens=50"], "benchmark.max_tokens", 50),
    ("mt_bench", "--max-length 2000", ["--set", "model.max_length=2000"], "model.max_length", 2000),
    ("mt_bench", "--revision v1", ["--set", "model.revision=v1"], "model.revision", "v1"),
    ("mt_bench", "--dtype float32", ["--set", "model.dtype=float32"], "model.dtype", "float32"),
    ("mt_bench", "--chat-template t", ["--set", "model.chat_template=t"], "model.chat_template", "t"),
    ("mt_bench", "--trust-remote-code", ["--set", "model.trust_remote_code=true"], "model.trust_remote_code", True),
    ("mt_bench", "--batch-size 4", ["--set", "backend.batch_size=4"], "backend.batch_size", 4),
    ("vllm", "--tensor-parallel-size 2", ["--set", "backend.tensor_parallel_size=2"],
     "backend.tensor_parallel_size", 2),
    ("vllm", "--data-parallel-size 2", ["--set", "backend.data_parallel_size=2"], "backend.data_parallel_size", 2),
    ("vllm", "--gpu-memory-utilization 0.5", ["--set", "backend.gpu_memory_utilization=0.5"],
     "backend.gpu_memory_utilization", 0.5),
    ("vllm", "--vllm-python p", ["--set", "compute.vllm_python=p"], "compute.vllm_python", "p"),
    ("mt_bench", "--seed 7", ["--set", "seed=7"], "seed", 7),
    ("mt_bench", "--runs-dir r", ["--set", "storage.runs_dir=r"], "storage.runs_dir", "r"),
    ("mt_bench", "--overwrite", ["--set", "overwrite=true"], "overwrite", True),
]  # fmt: skip
"""Benchmark, what the option was in 0.1, how it is said now, and the one key of the job that it sets.

`--benchmark` and `--backend` make the bases themselves; `--annotations` runs no job.
"""

EARLIER = {
    "MODEL", "--benchmark", "--out", "--name", "--prompts", "--annotator", "--annotations", "--questions",
    "--judge-prompts", "--reference-answers", "--endpoint-url", "--endpoint-model", "--endpoint-key-env", "--against",
    "--judge", "--judge-policy", "--judge-reference", "--reward-model", "--judge-model", "--temperature", "--top-p",
    "--max-tokens", "--max-length", "--revision", "--dtype", "--chat-template", "--trust-remote-code", "--backend",
    "--batch-size", "--tensor-parallel-size", "--data-parallel-size", "--gpu-memory-utilization", "--vllm-python",
    "--seed", "--runs-dir", "--overwrite",
}  # fmt: skip
"""The 36 that `spa evaluate` of 0.1 took."""


@pytest.fixture
def job_of(spa_here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobOf:
    """The job that a command line of `spa evaluate` would run, as JSON values."""
    (tmp_path / "mt.yaml").write_text(MT_BENCH)
    jobs: list[BenchmarkJob] = []

    def note(job: BenchmarkJob, reporter: object, *, consent: object) -> None:
        jobs.append(benchmark_job.settled(job))
        raise SystemExit(0)

    monkeypatch.setattr(evaluate, "run_benchmark", note)
    monkeypatch.setattr(job_output, "visible_gpus", list)

    def call(*arguments: str) -> dict[str, Any]:
        answer = spa_here("evaluate", *arguments)
        assert answer.code == 0, answer.err
        return jobs.pop().model_dump(mode="json")

    return call


def put(tree: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        tree = tree[section]
    tree[last] = value


@pytest.mark.parametrize(("base", "earlier", "now", "key", "value"), SPELLINGS, ids=lambda value: str(value)[:40])
def test_what_an_option_set_is_one_key_of_the_job(
    job_of: JobOf, base: str, earlier: str, now: list[str], key: str, value: Any
) -> None:
    job = job_of(*BASES[base])
    put(job, key, value)
    assert job_of(*BASES[base], *now) == job


def test_every_earlier_option_has_a_new_spelling() -> None:
    assert {earlier.split()[0] for _, earlier, *_ in SPELLINGS} | {
        "--benchmark",
        "--backend",
        "--annotations",
    } == EARLIER


def test_a_model_and_a_benchmark_are_a_whole_job(job_of: JobOf) -> None:
    job = job_of("org/Some-Model", "--benchmark", "alpaca_eval")
    assert job["model"] == {
        "model_name_or_path": "org/Some-Model",
        "revision": None,
        "dtype": "auto",
        "attn_implementation": None,
        "trust_remote_code": False,
        "chat_template": None,
        "chat_template_kwargs": {},
        "max_length": 4096,
    }
    assert job["name"] == "Some-Model"
    assert job["benchmark"] == {
        "type": "alpaca_eval",
        "prompts": None,
        "annotator": None,
        "temperature": 0.7,
        "top_p": 1.0,
        "max_tokens": 1024,
        "max_length": None,
    }
    assert job["backend"]["type"] == "transformers"
    assert (job["seed"], job["out"], job["overwrite"]) == (42, None, False)
    assert job["compute"]["executor"] == {"type": "fork"}  # there is no GPU


def test_models_may_be_named_by_their_runs(job_of: JobOf, tmp_path: Path) -> None:
    for name in ("ours", "theirs", "unfinished"):
        (tmp_path / "all" / name).mkdir(parents=True)
        (tmp_path / "all" / name / "resolved.json").touch()
    for name in ("ours", "theirs"):
        weights = tmp_path / "all" / name / "stages" / "model"
        weights.mkdir(parents=True)
        (weights / "config.json").touch()
        (tmp_path / "all" / name / "final").mkdir()
        (tmp_path / "all" / name / "final" / "config.json").symlink_to(weights / "config.json")
    pairwise = ["--benchmark", "pairwise", "--prompts", "p", "--set", "benchmark.judge.type=gold"]
    runs = ["--set", f"storage.runs_dir={tmp_path / 'all'}"]
    job = job_of("ours", *pairwise, "--against", "theirs", *runs)
    assert job["model"]["model_name_or_path"] == str(tmp_path / "all" / "ours" / "stages" / "model")
    assert job["benchmark"]["against"] == str(tmp_path / "all" / "theirs" / "stages" / "model")
    assert job["name"] == "ours"
    by_folder = job_of("all/ours/final", *pairwise, "--against", "all/theirs/final", *runs)
    assert by_folder == job
    with pytest.raises(RecipeError, match="the run has no final model yet; `spa resume"):
        benchmark_job.settled(load_job("unfinished", {"benchmark": "alpaca_eval"}, runs[1:]))


def test_an_executor_of_the_job_stays(job_of: JobOf) -> None:
    assert job_of("mt.yaml", "--set", "compute.executor.type=local")["compute"]["executor"] == {"type": "local"}
    assert job_of("mt.yaml", "--backend", "vllm")["compute"]["executor"] == {"type": "local"}


def test_a_file_and_options_make_the_same_job(job_of: JobOf, tmp_path: Path) -> None:
    (tmp_path / "pair.yml").write_text(
        """
model: {model_name_or_path: one, max_length: 500}
benchmark:
  type: pairwise
  against: two
  prompts: {source: p.jsonl}
  judge: {type: llm, endpoint: {base_url: "http://s/v1", model: m, api_key_env: null}}
  max_tokens: 40
backend: {type: vllm, tensor_parallel_size: 2}
compute: {vllm_python: /other/python}
seed: 3
"""
    )
    by_options = job_of(
        "one", "--benchmark", "pairwise", "--against", "two", "--prompts", "p.jsonl", "--backend", "vllm",
        "--set", "benchmark.judge={type: llm, endpoint: {base_url: 'http://s/v1', model: m, api_key_env: null}}",
        "--set", "benchmark.max_tokens=40", "--set", "model.max_length=500", "--set", "backend.tensor_parallel_size=2",
        "--set", "compute.vllm_python=/other/python", "--set", "seed=3",
    )  # fmt: skip
    assert job_of("pair.yml") == by_options
    assert job_of("pair.yml", "--against", "three", "--set", "seed=4") == {
        **by_options,
        "seed": 4,
        "benchmark": {**by_options["benchmark"], "against": "three"},
    }


def test_a_value_of_an_option_is_text(job_of: JobOf) -> None:
    job = job_of("7", "--benchmark", "alpaca_eval", "--prompts", "{a: b}", "--out", "null")
    assert (job["model"]["model_name_or_path"], job["benchmark"]["prompts"], job["out"]) == ("7", "{a: b}", "null")


def test_a_folder_with_a_name_like_a_file_is_a_model(job_of: JobOf, tmp_path: Path) -> None:
    (tmp_path / "model.yaml").mkdir()
    assert job_of("model.yaml", "--benchmark", "alpaca_eval")["model"]["model_name_or_path"] == "model.yaml"


def test_the_example_of_the_help_is_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = {command.callback: command for command in cli.app.registered_commands}
    text = str(commands[cli.evaluate].epilog).split("\b\n")[2].split("\n\n")[0]
    (tmp_path / "job.yaml").write_text(textwrap.dedent(text))
    job = load_job(str(tmp_path / "job.yaml"))
    assert job.benchmark.type == "mt_bench"
    assert job.out == "results/my-run-mt-bench"
    monkeypatch.chdir(tmp_path)
    for name in ("question.jsonl", "judge_prompts.jsonl", "gpt-4.jsonl"):
        Path(name).touch()
    plan = compile_benchmark_plan(benchmark_job.settled(job), DigestMemo(tmp_path / "memo"))
    assert [stage.id for stage in plan.stages] == ["mt-bench-answers", "mt-bench"]


@pytest.mark.parametrize(
    ("text", "arguments", "words"),
    [
        ("", [], "job.yaml: the job is empty; see the example in `spa evaluate --help`"),
        ("- a", [], "job.yaml:1: a job is a mapping of keys to values, not a list; begin with model: {"),
        (
            "model: {}\nbenchmark: {type: alpaca_eval}\n",
            [],
            "job.yaml:1: model.model_name_or_path: this key",
        ),
        (
            "model: {model_name_or_path: m}\n",
            [],
            "job.yaml: benchmark: this key is required; add it, e.g. benchmark: {",
        ),
        (
            "model: {model_name_or_path: m}\n\nbenchmark:\n  type: mt_bench\n  questons: q\n  questions: q\n",
            [],
            "job.yaml:5: benchmark.questons: unknown key",
        ),
        (
            "model: {model_name_or_path: m}\nbenchmark: {type: alpaca_eval}\nsed: 3\n",
            [],
            "job.yaml:3: sed: unknown key; did you mean seed?",
        ),
        (
            "model: {model_name_or_path: m}\nbenchmark: {type: alpaca_eval}\n",
            ["--set", "seed=x"],
            "--set seed: must be an integer",
        ),
        (
            "model: {model_name_or_path: m}\nbenchmark: {type: alpaca_eval}\n",
            ["--set", "seed"],
            "--set seed: not of the form key=value",
        ),
        (
            "model: {model_name_or_path: m}\nbenchmark: {type: alpaca_eval}\n",
            ["--against", "x"],
            "--against: benchmark.against: unknown key; allowed for type alpaca_eval:",
        ),
    ],
)
def test_mistakes_have_a_place(spa_here: Any, tmp_path: Path, text: str, arguments: list[str], words: str) -> None:
    (tmp_path / "job.yaml").write_text(text)
    answer = spa_here("evaluate", "job.yaml", *arguments)
    assert answer.code == 2
    assert answer.err.startswith(f"error: {words}"), answer.err
    assert len(answer.err.splitlines()) == 1


def test_all_mistakes_of_a_job_are_told_at_once(spa_here: Any, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(
        "model: {model_name_or_path: m, max_length: 100}\nbenchmark:\n  type: pairwise\n  max_tokens: 100\n"
    )
    answer = spa_here("evaluate", "job.yaml", "--set", "compute.vllm_python=p")
    assert answer.code == 2
    for words in ("job.yaml:4: benchmark.max_tokens", "benchmark.against", "benchmark.prompts", "--set compute.vllm_"):
        assert words in answer.err


def test_a_file_that_is_not_there(spa_here: Any) -> None:
    answer = spa_here("evaluate", "gone.yaml")
    expected = "error: gone.yaml: no such file; check the path, or see the example in `spa evaluate --help`\n"
    assert (answer.code, answer.err) == (2, expected)


def test_the_schema_of_jobs_is_for_editors(spa_here: Any) -> None:
    schema = job_schema()
    assert schema["title"] == "job of spa evaluate"
    assert schema["required"] == ["model", "benchmark"]
    sections = [schema, *schema["$defs"].values()]
    assert not [
        name
        for section in sections
        for name, entry in section["properties"].items()
        if name != "type" and "description" not in entry and "$ref" not in entry
    ]
    assert yaml.safe_load(spa_here("schema", "--job").out) == schema
