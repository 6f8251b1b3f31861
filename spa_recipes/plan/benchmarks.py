"""`spa evaluate`, and the benchmarks of a recipe: the stages that answer, judge and compare."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from spa_recipes.data.commits import Commits
from spa_recipes.plan.adapters import stack
from spa_recipes.plan.kinds import MODEL
from spa_recipes.plan.log_ratios import add_log_ratios, of_both_models
from spa_recipes.plan.models import Models
from spa_recipes.plan.stages import Builder, Input, Plan, Stage, StageOutput
from spa_recipes.plan.verdicts import add_verdicts
from spa_recipes.recipe.schema import AlpacaEval, DatasetSource, LmEval, Model, MtBench, Pairwise, Recipe, Sampling
from spa_recipes.state.digests import DigestMemo

if TYPE_CHECKING:
    from spa_recipes.recipe.jobs import BenchmarkJob

ALPACA_EVAL_PROMPTS = "tatsu-lab/alpaca_eval"
"""The dataset on the Hub that AlpacaEval's prompts come from where no file is given."""

_BENCHMARK_IDS = ("alpaca-eval", "mt-bench", "pairwise", "lm-eval")


def is_of_benchmark(stage: Stage) -> bool:
    """Whether a stage belongs to one of the field's benchmarks."""
    return stage.id.startswith(_BENCHMARK_IDS)


class _Subject(NamedTuple):
    """What a benchmark is run on.

    Attributes:
        name: what the model is called in the benchmark's files.
        key: the section of the benchmark, for messages.
        model: the model section as settings of a stage.
        policy: the model.
        sampling: with the engine to sample with.
        implicit_reward: policy and reference of the judge of a pairwise comparison that names neither; with QLoRA also
            the adapter that the policy is on the reference.
        init: the model to compare with, where a comparison names none.
        prompts: those of a comparison that names none.
    """

    name: str
    key: str
    model: dict[str, Any]
    policy: Input
    sampling: Sampling
    seed: int
    implicit_reward: dict[str, Input]
    init: Input | None = None
    prompts: StageOutput | None = None


def compile_benchmark_plan(job: BenchmarkJob, memo: DigestMemo, commits: Commits | None = None) -> Plan:
    """Lay out a job of `spa evaluate`: answer the benchmark's prompts, then grade or compare the answers.

    Args:
        job: with a name.
        memo: of digests.

    Raises:
        DataError: a local file is missing.
    """
    build = Builder(memo, commits)
    policy = build.model(job.model.model_name_or_path, job.model.revision, "model.model_name_or_path")
    limit = job.benchmark.max_length or job.model.max_length
    lengths = {"max_length": limit}
    if not isinstance(job.benchmark, LmEval):
        lengths["max_prompt_length"] = limit - job.benchmark.max_tokens
    model = build.model_settings(Model.model_validate({**job.model.model_dump(), **lengths}))
    sampling = Sampling(backend=job.backend)
    _benchmark(
        job.benchmark, "", build, _Subject(job.name, "benchmark", model, policy, sampling, job.seed, implicit_reward={})
    )
    memo.save()
    return Plan(job, tuple(build.stages.values()), build.commits.kept)


def _judge_of(recipe: Recipe, build: Builder, models: Models) -> dict[str, Input]:
    """The judge of the method after the seed stage: pi_0 against pi_init."""
    seed = StageOutput("seed", MODEL)
    adapter = stack("adapter", recipe, build, seed, models.init)
    return {"policy": models.init if adapter else seed, "reference": models.init, **adapter}


def add_benchmarks(recipe: Recipe, build: Builder, models: Models, policy: Input) -> None:
    """The benchmarks of the final policy; a second one of a kind gets a number."""
    for index, benchmark in enumerate(recipe.evaluation.benchmarks):
        subject = _Subject(
            recipe.name,
            f"evaluation.benchmarks.{index}",
            models.settings,
            policy,
            recipe.sampling,
            recipe.seed,
            implicit_reward=_judge_of(recipe, build, models) if recipe.data.seed_labels else {},
            init=models.init,
            prompts=StageOutput("data", "heldout.jsonl"),
        )
        before = sum(other.type == benchmark.type for other in recipe.evaluation.benchmarks[:index])
        _benchmark(benchmark, f"-{before + 1}" if before else "", build, subject)


def _benchmark(
    benchmark: AlpacaEval | MtBench | Pairwise | LmEval, number: str, build: Builder, subject: _Subject
) -> None:
    if isinstance(benchmark, AlpacaEval):
        _alpaca_eval(benchmark, f"alpaca-eval{number}", build, subject)
    elif isinstance(benchmark, MtBench):
        _mt_bench(benchmark, f"mt-bench{number}", build, subject)
    elif isinstance(benchmark, LmEval):
        _lm_eval(benchmark, f"lm-eval{number}", build, subject)
    else:
        _pairwise(benchmark, f"pairwise{number}", build, subject)


def _answers(
    benchmark: AlpacaEval | MtBench | Pairwise,
    stage_id: str,
    build: Builder,
    subject: _Subject,
    *,
    inputs: dict[str, Input],
    settings: dict[str, Any],
    policy: Input | None = None,
) -> str:
    """The stage that answers a benchmark's prompts."""
    model: Model = subject.model["model"]
    limit = benchmark.max_length or model.max_length
    sampling = {name: getattr(benchmark, name) for name in ("max_tokens", "top_p")}
    if not isinstance(benchmark, MtBench):  # which has its own temperatures
        sampling["temperature"] = benchmark.temperature
    return build.add(
        stage_id,
        "answers",
        f"answers to the prompts of {benchmark.type}" + (f" by {policy}, the other model" if policy else ""),
        settings={
            **subject.model,
            "benchmark": benchmark.type,
            "model": model.model_copy(update={"max_length": limit, "max_prompt_length": limit - benchmark.max_tokens}),
            # How many answers the iterations sample is nothing to a benchmark.
            "sampling": subject.sampling.model_copy(update={"n": 2, **sampling}),
            "seed": subject.seed,
            **settings,
        },
        inputs={"policy": policy or subject.policy, **inputs},
    )


def _alpaca_eval(benchmark: AlpacaEval, name: str, build: Builder, subject: _Subject) -> None:
    instructions = (
        build.file(benchmark.prompts, f"{subject.key}.prompts")
        if benchmark.prompts is not None
        else build.hub_dataset(ALPACA_EVAL_PROMPTS, f"{subject.key}.prompts")
    )
    answers = _answers(
        benchmark,
        f"{name}-answers",
        build,
        subject,
        inputs={"instructions": instructions},
        settings={"name": subject.name},
    )
    if benchmark.annotator is None:
        return
    annotations = build.add(
        f"{name}-annotations",
        "alpaca_annotations",
        f"the annotator {benchmark.annotator} compares the answers with the baseline's (paid)",
        settings={"annotator": benchmark.annotator},
        inputs={"outputs": StageOutput(answers, "model_outputs.json"), "instructions": instructions},
    )
    build.add(
        name,
        "alpaca_score",
        "AlpacaEval 2.0: win rates, by the package's own code",
        settings={},
        inputs={"annotations": StageOutput(annotations, f"{benchmark.annotator}/annotations.json")},
    )


def _mt_bench(benchmark: MtBench, name: str, build: Builder, subject: _Subject) -> None:
    questions = build.file(benchmark.questions, f"{subject.key}.questions")
    answers = _answers(
        benchmark,
        f"{name}-answers",
        build,
        subject,
        inputs={"questions": questions},
        settings={"name": subject.name},
    )
    if benchmark.endpoint is None or benchmark.judge_prompts is None:
        return
    references = benchmark.reference_answers
    build.add(
        name,
        "mt_bench_grades",
        f"MT-Bench: {benchmark.endpoint.model} grades every turn",
        settings={
            "endpoint": benchmark.endpoint,
            "judge_max_tokens": benchmark.judge_max_tokens,
            "name": subject.name,
        },
        inputs={
            "questions": questions,
            "answers": StageOutput(answers, f"model_answer/{subject.name}.jsonl"),
            "judge_prompts": build.file(benchmark.judge_prompts, f"{subject.key}.judge_prompts"),
            **(
                {"reference_answers": build.file(references, f"{subject.key}.reference_answers")}
                if references is not None
                else {}
            ),
        },
    )


def _pairwise(benchmark: Pairwise, name: str, build: Builder, subject: _Subject) -> None:
    source = benchmark.prompts or DatasetSource(source="heldout.jsonl")
    prompts = (
        subject.prompts if benchmark.prompts is None else build.source(benchmark.prompts, f"{subject.key}.prompts")
    )
    other = (
        subject.init if benchmark.against == "init" else build.model(benchmark.against, None, f"{subject.key}.against")
    )
    assert prompts is not None
    assert other is not None
    sides = {
        side: StageOutput(
            _answers(
                benchmark,
                f"{name}-{side}",
                build,
                subject,
                inputs={"prompts": prompts},
                settings={"source": source},
                policy=policy,
            ),
            "answers.jsonl",
        )
        for side, policy in (("ours", None), ("theirs", other))
    }
    versus = build.add(f"{name}-versus", "versus", "both models' answers side by side", settings={}, inputs={**sides})
    build.add(
        name,
        "win_rate",
        f"win rate against {other}, by the {benchmark.judge.type} judge",
        settings={"judge": benchmark.judge.type},
        inputs={
            "all": StageOutput(versus, "all.jsonl"),
            "pairs": StageOutput(versus, "pairs.jsonl"),
            **_comparison(benchmark, name, build, subject, versus),
        },
    )


def _lm_eval(benchmark: LmEval, name: str, build: Builder, subject: _Subject) -> None:
    key, model = subject.key, subject.model["model"]
    settings = {
        **subject.model,
        "benchmark": benchmark,
        "model": model.model_copy(update={"max_length": benchmark.max_length or model.max_length}),
    }
    files = (
        {} if benchmark.include_path is None else {"tasks": build.folder(benchmark.include_path, f"{key}.include_path")}
    )
    other = subject.init if benchmark.against is None else build.model(benchmark.against, None, f"{key}.against")
    read: dict[str, Input] = {}
    for side, policy in (("ours", subject.policy), ("theirs", other)):
        if policy is not None:
            role = f"lm-eval: {', '.join(benchmark.tasks)}" + (
                f" by {policy}, the other model" if side == "theirs" else ""
            )
            done = build.add(f"{name}-{side}", "lm_eval", role, settings=settings, inputs={"policy": policy, **files})
            read |= {side: StageOutput(done, "results.json"), f"{side}_samples": StageOutput(done, "samples.jsonl")}
    words = "pi_init" if benchmark.against is None else "the other model"
    build.add(
        name,
        "lm_eval_scores",
        f"results of lm-eval beside those of {other}" if other else "results of lm-eval",
        settings={"against": words} if other else {},
        inputs=read,
    )


def _comparison(benchmark: Pairwise, name: str, build: Builder, subject: _Subject, versus: str) -> dict[str, Input]:
    """The stages in which a judge reads both answers, and what they leave."""
    judge, pairs, key = benchmark.judge, StageOutput(versus, "pairs.jsonl"), f"{subject.key}.judge"
    if judge.type == "reward_model":
        build.add(
            f"{name}-rewards",
            "reward",
            "rewards of both answers by the reward model",
            settings=subject.model,
            inputs={
                "model": build.model(judge.model_name_or_path, judge.revision, f"{key}.model_name_or_path"),
                "completions": StageOutput(versus, "completions.parquet"),
                "prompts": pairs,
            },
        )
        return {"rewards": StageOutput(f"{name}-rewards", "rewards.parquet")}
    if judge.type == "gold":
        return {}
    if judge.type == "llm":
        verdicts = add_verdicts(
            judge,
            f"{name}-verdicts",
            build,
            key=key,
            model=subject.model,
            sampling=subject.sampling,
            seed=subject.seed,
            answers={"completions": StageOutput(versus, "completions.parquet"), "prompts": pairs},
        )
        if judge.mode == "single":
            return {"rewards": StageOutput(verdicts, "rewards.parquet")}
        return {"verdicts": StageOutput(verdicts, "verdicts.jsonl")}
    models = (
        subject.implicit_reward
        if judge.policy is None or judge.reference is None
        else {
            "policy": build.model(judge.policy, None, f"{key}.policy"),
            "reference": build.model(judge.reference, None, f"{key}.reference"),
        }
    )
    build.add(
        f"{name}-candidates",
        "candidates",
        "the answers as the judge's tokens",
        settings={**subject.model, "source": DatasetSource(source="pairs.jsonl")},
        inputs={"policy": models["policy"], "reference": models["reference"], "pairs": pairs},
    )
    completions = StageOutput(f"{name}-candidates", "completions.parquet")
    if of_both_models(subject.model["model"], judge.method):
        ratios = add_log_ratios(
            build,
            f"{name}-log-ratios",
            "log-ratios of both answers: the judge's policy against its reference",
            model=subject.model,
            method=judge.method,
            inputs={**models, "completions": completions},
        )
        return {"log_ratios": ratios}
    for role, model in models.items():
        build.add(
            f"{name}-{role}",
            "score",
            f"log-probs of both answers under the judge's {role}",
            settings=subject.model,
            inputs={"model": model, "completions": completions},
        )
    return {f"{role}_logps": StageOutput(f"{name}-{role}", "logps.parquet") for role in models}
