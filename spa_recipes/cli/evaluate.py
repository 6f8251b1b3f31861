"""`spa evaluate`: what it runs, and what it says at the end."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from spa_recipes.benchmark_job import BenchmarkResult, run_benchmark, score_annotations
from spa_recipes.cli.consent import consent_of, users_own_words
from spa_recipes.cli.progress import PlainReporter
from spa_recipes.cli.terminal import bold, say, yellow
from spa_recipes.errors import RecipeError
from spa_recipes.recipe.job import is_file_of_job, load_job
from spa_recipes.recipe.jobs import BenchmarkJob
from spa_recipes.recipe.schema import AlpacaEval, LmEval, MtBench
from spa_recipes.report import figures
from spa_recipes.report.benchmarks import benchmark_lines
from spa_recipes.state.digests import files_below
from spa_recipes.units import for_shell


def run_job(
    subject: str | None, options: Mapping[str, str | None], overrides: Sequence[str], *, trust: bool = False
) -> None:
    """Run a benchmark for a model or a job file, and print the result."""
    given = {name: value for name, value in options.items() if value is not None}
    job = load_job(subject, given, overrides)
    with PlainReporter() as reporter:
        of_file = subject is not None and is_file_of_job(subject)
        consent = consent_of(reporter, trust=trust, overrides=overrides) if of_file else users_own_words
        done = run_benchmark(job, reporter, consent=consent)
    _print_result(job, done)


def print_scores(
    annotations: str, subject: str | None, options: Mapping[str, str | None], overrides: Sequence[str]
) -> None:
    """Score annotations that are there, and print the rates."""
    folder = options["out"]
    others = [f"--{name}" for name, value in options.items() if value is not None and name not in ("out", "benchmark")]
    if options["benchmark"] not in (None, "alpaca_eval"):
        others.append(f"--benchmark {options['benchmark']}")
    if subject is not None or overrides or others:
        what = "a MODEL" if subject is not None else "--set" if overrides else others[0]
        raise RecipeError(f"{what} and annotations do not go together", where="--annotations", fix="leave one out")
    target = None if folder is None else Path(folder)
    scores = score_annotations(annotations, target)
    for name, value in scores.figures.items():
        say(f"{name:<26} {value}")
    if scores.missing:
        say(yellow(scores.missing))
    if target is not None:
        say(f"scores: {target / 'scores.json'}")


def _print_result(job: BenchmarkJob, done: BenchmarkResult) -> None:
    say()
    for name, manifest in done.manifests.items():
        if manifest.kind == "answers":
            say(f"{name}: {manifest.rows} prompts answered, {figures.line(manifest)}")
    for line in benchmark_lines(done.manifests):
        say(bold(line))
    say("", f"result: {done.out}")
    for path in files_below(done.out):
        say(f"        {path.relative_to(done.out)}")
    say(f"next:   {_next(job, done.out)}")


def _next(job: BenchmarkJob, folder: Path) -> str:
    """What makes sense now."""
    benchmark = job.benchmark
    if isinstance(benchmark, MtBench):
        if benchmark.endpoint is not None:
            return f"read the judgments below {folder / 'model_judgment'}"
        return (
            "grade the answers: the same command with another --out and benchmark.endpoint and benchmark.judge_prompts "
            "set, or FastChat's gen_judgment.py"
        )
    if isinstance(benchmark, LmEval):
        return f"read the answers to each row in {folder / 'samples.jsonl'}"
    if not isinstance(benchmark, AlpacaEval):
        return f"read who won and why in {folder / 'outcomes.jsonl'}"
    if benchmark.annotator is not None:
        path = folder / benchmark.annotator / "annotations.json"
        return f"score the annotations again at any time with `--annotations {for_shell(path)}`"
    return (
        "annotate the answers: the same command with another --out and --set benchmark.annotator=NAME, or "
        f"`alpaca_eval --model_outputs {for_shell(folder / 'model_outputs.json')}`"
    )
