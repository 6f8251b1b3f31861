"""`spa judge`: a judge on answers that are there already. For each judge, the stages that it adds."""

from collections.abc import Callable
from typing import Any

from spa_recipes.data.commits import Commits
from spa_recipes.plan.log_ratios import add_log_ratios
from spa_recipes.plan.stages import Builder, Input, Plan, StageOutput
from spa_recipes.plan.verdicts import add_verdicts
from spa_recipes.recipe.jobs import JudgeJob
from spa_recipes.recipe.schema import ImplicitRewardJudge, LlmJudge, RewardModelJudge, Sampling, Section
from spa_recipes.state.digests import DigestMemo

ANSWERS: dict[str, Input] = {
    "completions": StageOutput("candidates", "completions.parquet"),
    "prompts": StageOutput("candidates", "prompts.jsonl"),
}
"""The user's answers, as the stage `candidates` writes them."""


def compile_judge_plan(job: JudgeJob, memo: DigestMemo, commits: Commits | None = None) -> Plan:
    """Lay out `spa judge`: read the answers, compute what the judge says of them, label.

    Raises:
        DataError: a local file is missing.
    """
    build = Builder(memo, commits)
    settings, inputs = FRAGMENTS[job.judge.type](job, build)
    build.add(
        "judge",
        "judge",
        f"labels by the {job.judge.type.replace('_', ' ')}{' judge' if job.judge.type == 'llm' else ''}",
        settings={"judge": settings, "seed": job.seed, "iteration": 0, "gold_audit": False},
        inputs={**ANSWERS, **inputs},
    )
    memo.save()
    return Plan(job, tuple(build.stages.values()), build.commits.kept)


def _candidates(job: JudgeJob, build: Builder, role: str, settings: dict[str, Any], models: dict[str, Input]) -> None:
    build.add(
        "candidates",
        "candidates",
        role,
        settings={**settings, "source": job.pairs},
        inputs={**models, "pairs": build.source(job.pairs, "pairs")},
    )


def _implicit_reward(job: JudgeJob, build: Builder) -> tuple[Section, dict[str, Input]]:
    """The method: the log-ratios of the answers under both models."""
    assert isinstance(job.judge, ImplicitRewardJudge)
    assert job.reference is not None
    model = build.model_settings(job.model)
    models: dict[str, Input] = {
        "policy": build.model(job.model.model_name_or_path, job.model.revision, "model.model_name_or_path"),
        "reference": build.model(job.reference, job.reference_revision, "reference"),
    }
    adapter: dict[str, Input] = {} if job.adapter is None else {"adapter": build.model(job.adapter, None, "adapter")}
    _candidates(job, build, "read and tokenise the answers", model, models)
    ratios = add_log_ratios(
        build,
        "log-ratios",
        "log-ratios of the answers: the policy against the reference",
        model=model,
        method=job.judge.method,
        inputs={**models, **adapter, "completions": ANSWERS["completions"]},
    )
    return job.judge.model_copy(update={"method": "auto"}), {"log_ratios": ratios}


def _reward_model(job: JudgeJob, build: Builder) -> tuple[Section, dict[str, Input]]:
    """Rewards by a reward model from outside, which reads the texts in its own way."""
    judge = job.judge
    assert isinstance(judge, RewardModelJudge)
    assert judge.model_name_or_path is not None
    _candidates(job, build, "read the answers", {}, {})
    build.add(
        "rewards",
        "reward",
        "rewards of the answers by the reward model",
        settings=build.model_settings(job.model),
        inputs={**ANSWERS, "model": build.model(judge.model_name_or_path, judge.revision, "judge.model_name_or_path")},
    )
    return judge, {"rewards": StageOutput("rewards", "rewards.parquet")}


def _llm(job: JudgeJob, build: Builder) -> tuple[Section, dict[str, Input]]:
    """The share of the comparisons in words that an answer won."""
    assert isinstance(job.judge, LlmJudge)
    _candidates(job, build, "read the answers", {}, {})
    verdicts = add_verdicts(
        job.judge,
        "verdicts",
        build,
        key="judge",
        model=build.model_settings(job.model),
        sampling=Sampling(backend=job.backend),
        seed=job.seed,
        answers=ANSWERS,
    )
    return LlmJudge(type="llm"), {"rewards": StageOutput(verdicts, "rewards.parquet")}


FRAGMENTS: dict[str, Callable[[JudgeJob, Builder], tuple[Section, dict[str, Input]]]] = {
    "implicit_reward": _implicit_reward,
    "reward_model": _reward_model,
    "llm": _llm,
}
"""By `judge.type`: adds the stages before the labels, and gives the settings and inputs of those."""
