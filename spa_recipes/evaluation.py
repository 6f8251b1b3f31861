"""`spa evaluate` from Python: one of the field's benchmarks for one model. Importing it loads no heavy library."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from spa_recipes.api import DIGEST_MEMO, find_run
from spa_recipes.benchmarks import alpaca_eval
from spa_recipes.errors import RecipeError
from spa_recipes.plan import Plan, compile_evaluate_plan
from spa_recipes.recipe.rules import conflicts_in
from spa_recipes.recipe.schema import EvaluateJob
from spa_recipes.run.executors import Executors, has_nvidia_driver
from spa_recipes.run.final import model_shown
from spa_recipes.run.preflight import check_inputs
from spa_recipes.run.reporter import Reporter
from spa_recipes.run.rundir import RunDir
from spa_recipes.run.runner import execute
from spa_recipes.state import atomic
from spa_recipes.state.digests import DigestMemo
from spa_recipes.state.stagedir import Manifest

BENCHMARKS = ("alpaca_eval", "mt_bench", "pairwise")
MAX_LENGTH = 4096
"""Tokens of prompt and answer where nothing else is said: two turns of MT-Bench and their answers fit."""

_DELIVERED = {
    "alpaca_eval": ("answers", "alpaca_annotations", "alpaca_score"),
    "mt_bench": ("answers", "mt_bench_judge"),
    "pairwise": ("win_rate",),
}
"""Kinds of the stages whose output is what the user asked for."""

_FOR = {
    "prompts": ("alpaca_eval", "pairwise"),
    "temperature": ("alpaca_eval", "pairwise"),
    "annotator": ("alpaca_eval",),
    "annotations": ("alpaca_eval",),
    "questions": ("mt_bench",),
    "judge_prompts": ("mt_bench",),
    "reference_answers": ("mt_bench",),
    "endpoint_url": ("mt_bench", "pairwise"),
    "endpoint_model": ("mt_bench", "pairwise"),
    "endpoint_key_env": ("mt_bench", "pairwise"),
    "against": ("pairwise",),
    "judge": ("pairwise",),
    "judge_policy": ("pairwise",),
    "judge_reference": ("pairwise",),
    "reward_model": ("pairwise",),
    "judge_model": ("pairwise",),
}
"""Benchmarks that an option means something to; options that are not here mean something to all."""

_KEYS = {
    "benchmark.endpoint.base_url": "--endpoint-url",
    "benchmark.endpoint.model": "--endpoint-model",
    "benchmark.endpoint.api_key_env": "--endpoint-key-env",
    "benchmark.prompts.source": "--prompts",
    "benchmark.judge.type": "--judge",
    "benchmark.judge.policy": "--judge-policy",
    "benchmark.judge.reference": "--judge-reference",
    "benchmark.judge.model_name_or_path": "--reward-model",
    "benchmark.judge.endpoint.base_url": "--endpoint-url",
    "benchmark.judge.endpoint.model": "--endpoint-model",
    "benchmark.judge.endpoint.api_key_env": "--endpoint-key-env",
    "model.model_name_or_path": "MODEL",
    "model.max_prompt_length": "--max-length",
}
"""What the command calls keys of its job whose names say it otherwise."""


class EvaluateRequest(NamedTuple):
    """What `spa evaluate` is asked to do; names are those of the command's options, None where one is not given."""

    benchmark: str
    model: str | None = None
    out: Path | None = None
    name: str | None = None
    prompts: str | None = None
    annotations: str | None = None
    annotator: str | None = None
    questions: str | None = None
    judge_prompts: str | None = None
    reference_answers: str | None = None
    endpoint_url: str | None = None
    endpoint_model: str | None = None
    endpoint_key_env: str | None = None
    against: str | None = None
    judge: str | None = None
    judge_policy: str | None = None
    judge_reference: str | None = None
    reward_model: str | None = None
    judge_model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    max_length: int = MAX_LENGTH
    revision: str | None = None
    dtype: str = "auto"
    chat_template: str | None = None
    trust_remote_code: bool = False
    backend: str = "transformers"
    batch_size: int | None = None
    tensor_parallel_size: int | None = None
    data_parallel_size: int | None = None
    gpu_memory_utilization: float | None = None
    vllm_python: str | None = None
    seed: int = 42
    runs_dir: Path = Path("runs")
    overwrite: bool = False


class Evaluated(NamedTuple):
    """What came of it: where it is, and the manifests of the stages by id."""

    out: Path
    plan: Plan
    manifests: dict[str, Manifest]


def evaluate(request: EvaluateRequest, reporter: Reporter, executors: Executors | None = None) -> Evaluated:
    """Run a benchmark for a model.

    Work in progress lives in `OUT.spa/` beside the output until that is there, so a stopped call goes on where it was
    when it is made again. `executors` of one's own spare several calls in a row the import of the libraries; the caller
    closes them.

    Raises:
        SpaError: with the exit code of what went wrong.
    """
    job = evaluate_job(request)
    out = request.out or Path("evaluations") / f"{job.name}-{request.benchmark}"
    run = RunDir(out.with_name(out.name + ".spa"))
    in_the_way = RecipeError("the output folder is there already", where=str(out), fix="choose another, or --overwrite")
    # With work in progress beside it, the folder may be the same call's, which was killed while it cleaned up.
    if out.exists() and not request.overwrite and not run.path.is_dir():
        raise in_the_way
    if request.out is not None and not out.absolute().parent.is_dir():
        raise RecipeError("no such folder", where=str(out.parent), fix="make it first")
    plan = compile_evaluate_plan(job, DigestMemo(run.path / DIGEST_MEMO))
    check_inputs(plan, run)
    out.absolute().parent.mkdir(exist_ok=True)
    text = json.dumps(job.model_dump(mode="json"), indent=2)
    outcome = execute(plan, run, text, until=None, accept=True, reporter=reporter, executors=executors)
    finished = _collect(plan, run)
    if out.exists():
        if not request.overwrite and _content(out) != _content(finished):
            raise in_the_way
        shutil.rmtree(out)
    finished.replace(out)
    atomic.fsync_dir(out.absolute().parent)
    shutil.rmtree(run.path)
    return Evaluated(out, plan, outcome.manifests)


def _collect(plan: Plan, run: RunDir) -> Path:
    """The results of the stages in one folder, beside the stages."""
    assert isinstance(plan.recipe, EvaluateJob)
    finished = run.path / ".finished"
    shutil.rmtree(finished, ignore_errors=True)
    for stage in plan.stages:
        if stage.kind in _DELIVERED[plan.recipe.benchmark.type]:
            shutil.copytree(run.stage_dir(stage, plan).output, finished, dirs_exist_ok=True)
    atomic.fsync_tree(finished)
    return finished


def _content(folder: Path) -> str:
    return DigestMemo(folder / "none").of(folder)


def score_annotations(annotations: str, out: Path | None) -> alpaca_eval.Scores:
    """The rates of an AlpacaEval annotation file; written as `out/scores.json` where `out` is given.

    Raises:
        RecipeError: the package alpaca_eval is not installed. DataError: the file is missing or not such a file.
    """
    path = Path(annotations).expanduser()
    rows = alpaca_eval.read_annotations(path)
    if out is not None and not out.absolute().parent.is_dir():
        raise RecipeError("no such folder", where=str(out.parent), fix="make it first")
    scores = alpaca_eval.score(rows, str(path))
    if out is not None:
        out.mkdir(exist_ok=True)
        atomic.write_json(out / "scores.json", scores.figures)
    return scores


# --- from options to a job


def evaluate_job(request: EvaluateRequest) -> EvaluateJob:
    """The options as a job.

    Raises:
        RecipeError: options do not go together, or one has a value that is none.
    """
    if request.benchmark not in BENCHMARKS:
        raise RecipeError(
            f"there is no benchmark {request.benchmark!r}", where="--benchmark", fix=f"one of {', '.join(BENCHMARKS)}"
        )
    _refuse_useless(request)
    if request.model is None:
        raise RecipeError("no MODEL", fix="name a folder, a Hub id or a run, e.g. `spa evaluate runs/quickstart/final`")
    location, name = _model(request.model, request.runs_dir)
    benchmark = {
        "type": request.benchmark,
        **_given(request, "temperature", "top_p", "max_tokens"),
        **{"alpaca_eval": _alpaca_eval, "mt_bench": _mt_bench, "pairwise": _pairwise}[request.benchmark](request),
    }
    sizes = ("batch_size", "tensor_parallel_size", "data_parallel_size", "gpu_memory_utilization")
    backend = {"type": request.backend, **_given(request, *sizes)}
    try:
        job = EvaluateJob.model_validate(
            {
                "name": request.name or name,
                "model": {
                    "model_name_or_path": location,
                    "revision": request.revision,
                    "dtype": request.dtype,
                    "max_length": request.max_length,
                    "max_prompt_length": max(1, request.max_length - (request.max_tokens or 1024)),
                    "trust_remote_code": request.trust_remote_code,
                    "chat_template": request.chat_template,
                },
                "benchmark": benchmark,
                "backend": backend,
                "seed": request.seed,
                "compute": _compute(request),
            }
        )
    except ValidationError as error:
        raise _explained(error) from None
    if job.benchmark.max_tokens >= request.max_length:
        raise RecipeError(
            f"an answer of {job.benchmark.max_tokens} tokens leaves no room for a prompt in {request.max_length}",
            where="--max-tokens",
            fix="lower it, or raise --max-length",
        )
    return job


def _compute(request: EvaluateRequest) -> dict[str, Any]:
    """The compute section."""
    if request.backend == "vllm":
        return _given(request, "vllm_python")
    if request.vllm_python is not None:
        raise RecipeError("means nothing to --backend transformers", where="--vllm-python", fix="use --backend vllm")
    # Without a GPU the stages can share one import of the libraries.
    return {} if has_nvidia_driver() else {"executor": {"type": "fork"}}


def _given(request: EvaluateRequest, *names: str) -> dict[str, Any]:
    """The options that are given, by name."""
    return {name: value for name in names if (value := getattr(request, name)) is not None}


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _refuse_useless(request: EvaluateRequest) -> None:
    """An option that means nothing to the benchmark is a mistake."""
    for name, benchmarks in _FOR.items():
        if getattr(request, name) is not None and request.benchmark not in benchmarks:
            raise RecipeError(
                f"means nothing to --benchmark {request.benchmark}",
                where=_option(name),
                fix=f"leave it out, or choose --benchmark {' or '.join(benchmarks)}",
            )


def _model(model: str, runs_dir: Path) -> tuple[str, str]:
    """Place of the model's weights, and a name for it that can be a file's."""
    if any((path / "resolved.json").is_file() for path in (runs_dir / model, Path(model))):
        run = find_run(model, runs_dir)
        if not run.final.exists():
            raise RecipeError("the run has no final model yet", where=str(run.path), fix=f"`spa resume {run.path}`")
        return str(model_shown(run.final)), run.name
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return model, _safe(model.rstrip("/").split("/")[-1])
    name = folder.resolve().parent.name if folder.name == "final" else folder.resolve().name
    return str(model_shown(folder)) if folder.name == "final" else str(folder), _safe(name)


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("._-")[:80] or "model"


def _alpaca_eval(request: EvaluateRequest) -> dict[str, Any]:
    return _given(request, "prompts", "annotator")


def _mt_bench(request: EvaluateRequest) -> dict[str, Any]:
    if request.questions is None:
        raise RecipeError(
            "MT-Bench needs its questions", where="--questions", fix="give the question.jsonl that FastChat publishes"
        )
    section = _given(request, "questions", "judge_prompts", "reference_answers")
    if endpoint := _endpoint(request):
        section["endpoint"] = endpoint
    return section


def _endpoint(request: EvaluateRequest) -> dict[str, Any]:
    """The endpoint section; empty without one."""
    if request.endpoint_url is None and request.endpoint_model is None:
        return {}
    for name in ("endpoint_url", "endpoint_model"):
        if getattr(request, name) is None:
            raise RecipeError("--endpoint-url and --endpoint-model belong together", where=_option(name), fix="give it")
    section: dict[str, Any] = {"base_url": request.endpoint_url, "model": request.endpoint_model}
    if request.endpoint_key_env is not None:
        section["api_key_env"] = None if request.endpoint_key_env == "none" else request.endpoint_key_env
    return section


def _pairwise(request: EvaluateRequest) -> dict[str, Any]:
    for name, what in (("against", "the model to compare with"), ("prompts", "prompts to answer")):
        if getattr(request, name) is None:
            raise RecipeError(f"a pairwise comparison needs {what}", where=_option(name), fix="give it")
    assert request.against is not None
    if request.against == "init":
        raise RecipeError("there is no run whose pi_init could be meant", where="--against", fix="name its folder")
    against, _ = _model(request.against, request.runs_dir)
    return {"against": against, "prompts": {"source": request.prompts}, "judge": _pairwise_judge(request)}


def _pairwise_judge(request: EvaluateRequest) -> dict[str, Any]:
    options: Mapping[str, Mapping[str, str]] = {
        "implicit_reward": {"judge_policy": "policy", "judge_reference": "reference"},
        "reward_model": {"reward_model": "model_name_or_path"},
        "llm": {},
        "gold": {},
    }
    kind = request.judge or "implicit_reward"
    if kind not in options:
        raise RecipeError(f"there is no judge {kind!r}", where="--judge", fix=f"one of {', '.join(options)}")
    for name in ("judge_policy", "judge_reference", "reward_model"):
        given, wanted = getattr(request, name) is not None, name in options[kind]
        if given != wanted:
            what = f"the judge {kind} needs it" if wanted else f"means nothing to the judge {kind}"
            raise RecipeError(what, where=_option(name), fix="name a folder or a Hub id" if wanted else "leave it out")
    if kind == "llm":
        return _llm_judge(request)
    for name in ("judge_model", "endpoint_url", "endpoint_model", "endpoint_key_env"):
        if getattr(request, name) is not None:
            raise RecipeError(f"means nothing to the judge {kind}", where=_option(name), fix="use --judge llm")
    return {"type": kind, **{key: getattr(request, name) for name, key in options[kind].items()}}


def _llm_judge(request: EvaluateRequest) -> dict[str, Any]:
    endpoint = _endpoint(request)
    if bool(endpoint) == (request.judge_model is not None):
        raise RecipeError(
            "the judge llm is one model",
            where="--judge",
            fix="give either --judge-model, or --endpoint-url and --endpoint-model",
        )
    return {"type": "llm", **({"endpoint": endpoint} if endpoint else {"model_name_or_path": request.judge_model})}


def _explained(error: ValidationError) -> RecipeError:
    """The first of the errors, at the option that it is about."""
    for conflict in conflicts_in(error):
        key = conflict.keys[0]
        return RecipeError(conflict.what, where=_KEYS.get(key) or _option(key.rpartition(".")[2]), fix=conflict.fix)
    first = error.errors()[0]
    tags = (*BENCHMARKS, "transformers", "vllm", "implicit_reward", "reward_model", "llm", "gold")
    parts = [str(part) for part in first["loc"] if part not in tags]
    key = ".".join(parts)
    where = _KEYS.get(key) or (_option(parts[-1]) if parts else "")
    return RecipeError(first["msg"], where=where)
