"""`spa evaluate`: what it runs, and what it says at the end."""

from pathlib import Path

from spa_recipes.cli.progress import PlainReporter
from spa_recipes.cli.terminal import bold, say, yellow
from spa_recipes.errors import RecipeError
from spa_recipes.evaluation import Evaluated, EvaluateRequest, evaluate, score_annotations
from spa_recipes.report import figures
from spa_recipes.report.benchmarks import benchmark_lines


def run_evaluation(request: EvaluateRequest) -> None:
    """Run a benchmark, or score annotations that are there, and print the result."""
    if request.annotations is not None:
        _score(request, request.annotations)
        return
    with PlainReporter() as reporter:
        done = evaluate(request, reporter)
    _print_result(request, done)


def _score(request: EvaluateRequest, annotations: str) -> None:
    if request.model is not None or request.benchmark != "alpaca_eval":
        what = "a MODEL" if request.model is not None else f"--benchmark {request.benchmark}"
        raise RecipeError(f"{what} and annotations do not go together", where="--annotations", fix="leave one out")
    scores = score_annotations(annotations, request.out)
    for name, value in scores.figures.items():
        say(f"{name:<26} {value}")
    if scores.missing:
        say(yellow(scores.missing))
    if request.out is not None:
        say(f"scores: {request.out / 'scores.json'}")


def _print_result(request: EvaluateRequest, done: Evaluated) -> None:
    say()
    for name, manifest in done.manifests.items():
        if manifest.kind == "answers":
            say(f"{name}: {manifest.rows} prompts answered, {figures.line(manifest)}")
    for line in benchmark_lines(done.manifests):
        say(bold(line))
    say(f"\nresult: {done.out}")
    for path in sorted(path for path in done.out.rglob("*") if path.is_file()):
        say(f"        {path.relative_to(done.out)}")
    say(f"next:   {_next(request, done.out)}")


def _next(request: EvaluateRequest, folder: Path) -> str:
    """What makes sense now."""
    if request.benchmark == "pairwise":
        return f"read who won and why in {folder / 'outcomes.jsonl'}"
    if request.benchmark == "mt_bench":
        if request.endpoint_url is not None:
            return f"read the judgments below {folder / 'model_judgment'}"
        return (
            "grade the answers: the same command with another --out and --judge-prompts, --endpoint-url and "
            "--endpoint-model, or FastChat's gen_judgment.py"
        )
    if request.annotator is not None:
        path = folder / request.annotator / "annotations.json"
        return f"score the annotations again at any time with `--annotations {path}`"
    return (
        "annotate the answers: the same command with another --out and --annotator NAME, or "
        f"`alpaca_eval --model_outputs {folder / 'model_outputs.json'}`"
    )
