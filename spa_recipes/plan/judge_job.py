"""`spa judge`: the judge of the method on answers that are there already."""

from spa_recipes.plan.log_ratios import add_log_ratios
from spa_recipes.plan.stages import Builder, Input, Plan, StageOutput
from spa_recipes.recipe.schema import JudgeJob
from spa_recipes.state.digests import DigestMemo


def compile_judge_plan(job: JudgeJob, memo: DigestMemo) -> Plan:
    """Lay out `spa judge`: read the answers, compute their log-ratios, label.

    Raises:
        DataError: a local data file is missing.
    """
    build = Builder(memo)
    model = build.model_settings(job.model)
    models: dict[str, Input] = {
        "policy": build.model(job.model.model_name_or_path, job.model.revision, "model.model_name_or_path"),
        "reference": build.model(job.reference, job.reference_revision, "reference"),
    }
    adapter: dict[str, Input] = {} if job.adapter is None else {"adapter": build.model(job.adapter, None, "adapter")}
    build.add(
        "candidates",
        "candidates",
        "read and tokenise the answers",
        settings={**model, "source": job.pairs},
        inputs={**models, "pairs": build.source(job.pairs, "pairs")},
    )
    completions = StageOutput("candidates", "completions.parquet")
    ratios = add_log_ratios(
        build,
        "log-ratios",
        "log-ratios of the answers: the policy against the reference",
        model=model,
        method=job.judge.method,
        inputs={**models, **adapter, "completions": completions},
    )
    build.add(
        "judge",
        "judge",
        "labels by the implicit reward",
        settings={
            "judge": job.judge.model_copy(update={"method": "auto"}),
            "seed": job.seed,
            "iteration": 0,
            "gold_audit": False,
        },
        inputs={
            "completions": completions,
            "prompts": StageOutput("candidates", "prompts.jsonl"),
            "log_ratios": ratios,
        },
    )
    memo.save()
    return Plan(job, tuple(build.stages.values()))
