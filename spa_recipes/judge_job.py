"""Runs `spa judge`: labels pairs that a user already has. Importing it loads no heavy library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from spa_recipes import job_output
from spa_recipes.errors import RecipeError, setting
from spa_recipes.plan.judge_job import compile_judge_plan
from spa_recipes.recipe.job import checked, put_option
from spa_recipes.recipe.jobs import JudgeJob
from spa_recipes.recipe.load import override
from spa_recipes.recipe.text import Values
from spa_recipes.run.commits import commits_of
from spa_recipes.state import atomic
from spa_recipes.state.stagedir import Manifest

if TYPE_CHECKING:
    from spa_recipes.run.executors import Executors
    from spa_recipes.run.reporter import Reporter

WITHOUT_POSITIONS = 2048
"""Tokens of prompt and answer where no model says for how many it has positions."""

MOST_FOR_WORDS = 8192
"""Tokens that a judge in words gets room for unless the user says how many: an engine may set room aside for all."""


class JudgeRequest(NamedTuple):
    """What `spa judge` is asked to do; names are those of the command's options, None is the default of the job.

    Attributes:
        settings: `key=value` texts as of `--set`, for any key of the job.
    """

    policy: str | None
    reference: str | None
    pairs: str
    out: Path
    judge: str = "implicit_reward"
    beta: float | None = None
    length_penalty: str | None = None
    dtype: str = "auto"
    method: str | None = None
    min_margin_in_noise: float | None = None
    max_length: int | None = None
    max_prompt_length: int | None = None
    columns: dict[str, str | None] | None = None
    data: dict[str, Any] | None = None
    split: str | None = None
    on_bad_row: str = "error"
    seed: int = 42
    overwrite: bool = False
    trust_remote_code: bool = False
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    settings: Sequence[str] = ()


def judge_pairs(request: JudgeRequest, reporter: Reporter, executors: Executors | None = None) -> Manifest:
    """Label pairs that a user already has: by an implicit reward, a reward model, or a language model in words.

    Until the output is written, the work stays in `OUT.spa/` beside it. The same call continues it after a stop.
    `executors` of one's own spare several jobs in a row the import of the libraries; the caller closes them.

    Raises:
        SpaError: with the exit code of what went wrong.
    """
    run = job_output.open_for_file(request.out, overwrite=request.overwrite)
    plan = compile_judge_plan(judge_job(request), job_output.memo_of(run), commits_of(run, ask=True))
    outcome = job_output.work(plan, run, reporter, executors)
    pairs = run.stage_dir(plan.stage("judge"), plan).output / "pairs.jsonl"
    atomic.write_bytes(run.path / job_output.FINISHED, pairs.read_bytes())
    job_output.deliver(run, request.out, overwrite=request.overwrite)
    return outcome.manifests["judge"]


def judge_job(request: JudgeRequest) -> JudgeJob:
    """The job that is asked for.

    Raises:
        InvalidRecipeError, RecipeError: values are wrong.
        DataError, TryAgainError: the configuration of a model cannot be read.
    """
    values = Values({})
    for option, key, value in _options(request):
        if value is not None:
            put_option(values, key, value, option)
    override(values, request.settings)
    _put_model(values, request)
    _put_lengths(values)
    job = checked(JudgeJob, values, "spa judge")
    return job.model_copy(update={"compute": job_output.compute_here(job.compute, job.backend)})


def _options(request: JudgeRequest) -> list[tuple[str, str, Any]]:
    """Option, key of the job, and value."""
    data = request.data or {}
    columns = {**(request.columns or {}), **data.get("columns", {})}
    pairs = {"source": request.pairs, "split": request.split, **data, "columns": columns}
    return [
        ("--out", "name", request.out.stem or "judge"),
        ("--pairs", "pairs", {**pairs, "on_bad_row": request.on_bad_row}),
        ("--judge", "judge.type", request.judge),
        ("--beta", "judge.beta", request.beta),
        ("--length-penalty", "judge.length_penalty", _length_penalty(request.length_penalty)),
        ("--method", "judge.method", request.method),
        ("--min-margin-in-noise", "judge.min_margin_in_noise", request.min_margin_in_noise),
        ("--dtype", "model.dtype", request.dtype),
        ("--trust-remote-code", "model.trust_remote_code", request.trust_remote_code),
        ("--chat-template", "model.chat_template", request.chat_template),
        ("--chat-template-kwargs", "model.chat_template_kwargs", request.chat_template_kwargs),
        ("--max-length", "model.max_length", request.max_length),
        ("--max-prompt-length", "model.max_prompt_length", request.max_prompt_length),
        ("--seed", "seed", request.seed),
    ]


def _put_model(values: Values, request: JudgeRequest) -> None:
    """Name the model: the policy of an implicit reward with its reference, else the judge itself.

    Raises:
        RecipeError: a model is missing, or has no effect.
    """
    from spa_recipes.run.tangent_preflight import is_adapter

    kind, models = _judge_of(values).get("type"), {"--policy": request.policy, "--reference": request.reference}
    if kind != "implicit_reward":
        for option, given in models.items():
            if given is not None:
                what = f"has no effect with the {kind} judge"
                raise RecipeError(what, where=option, fix="leave it out, and set judge.model_name_or_path")
        endpoint = _judge_of(values).get("endpoint")
        served = endpoint.get("model") if isinstance(endpoint, dict) else None
        name = _judge_of(values).get("model_name_or_path") or served or kind
        put_option(values, "model.model_name_or_path", str(name), "--judge")
        return
    for option, given in models.items():
        if given is None:
            what = "the implicit reward needs a policy and its reference"
            raise RecipeError(what, where=option, fix="name a folder or a Hub id, or choose another --judge")
    assert request.policy is not None
    adapter = is_adapter(request.policy)  # it is the policy together with the reference
    put_option(values, "model.model_name_or_path", request.reference if adapter else request.policy, "--policy")
    put_option(values, "reference", request.reference, "--reference")
    if adapter:
        put_option(values, "adapter", request.policy, "--policy")


def _put_lengths(values: Values) -> None:
    """Put the lengths that are not named: what the models have positions for, and half of it.

    Raises:
        DataError, TryAgainError: the configuration of a model cannot be read.
    """
    from spa_recipes.data.model_files import ModelFiles
    from spa_recipes.run.model_preflight import context_of

    model, judge = values.root["model"], _judge_of(values)
    if "max_length" not in model:
        named = {"--policy": model["model_name_or_path"], "--reference": values.root.get("reference")}
        if judge.get("type") != "implicit_reward":
            named = {"judge.model_name_or_path": judge.get("model_name_or_path")}
        limits = [] if judge.get("type") != "llm" else [MOST_FOR_WORDS]
        for word, location in named.items():
            if isinstance(location, str):
                with setting(word):
                    limit = context_of(ModelFiles(location, None))
                limits += [limit] if limit is not None else []
        put_option(values, "model.max_length", min(limits, default=WITHOUT_POSITIONS), "--max-length")
    if "max_prompt_length" not in model and isinstance(most := model["max_length"], int):
        put_option(values, "model.max_prompt_length", max(1, most // 2), "--max-prompt-length")


def _judge_of(values: Values) -> dict[str, Any]:
    """The section of the judge, which `--set` may have made anything."""
    judge = values.root.get("judge")
    return judge if isinstance(judge, dict) else {}


def _length_penalty(text: str | None) -> float | Literal["balanced"] | None:
    """A number of at least 0, or `balanced`."""
    if text is None or text == "balanced":
        return text  # type: ignore[return-value]  # mypy does not see that it is this one text
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise RecipeError(
            f"must be a number of at least 0, or balanced, not {text!r}", where="--length-penalty", fix="e.g. 0.01"
        )
    return number
