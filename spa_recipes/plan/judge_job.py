"""`spa judge`: the judge of the method on answers that are there already."""

from spa_recipes.plan.stages import Builder, Input, Plan, StageOutput
from spa_recipes.recipe.schema import JudgeJob
from spa_recipes.state.digests import DigestMemo


def compile_judge_plan(job: JudgeJob, memo: DigestMemo) -> Plan:
    """Lay out `spa judge`: read the answers, score them under both models, label.

    Raises:
        DataError: a local data file is missing.
    """
    build = Builder(memo)
    model = build.model_settings(job.model)
    models: dict[str, Input] = {
        "policy": build.model(job.model.model_name_or_path, job.model.revision, "model.model_name_or_path"),
        "reference": build.model(job.reference, job.reference_revision, "reference"),
    }
    build.add(
        "candidates",
        "candidates",
        "read and tokenise the answers",
        settings={**model, "source": job.pairs},
        inputs={**models, "pairs": build.source(job.pairs, "pairs")},
    )
    completions = StageOutput("candidates", "completions.parquet")
    for role, value in models.items():
        build.add(
            f"score-{role}",
            "score",
            f"log-probs of the answers under the {role}",
            settings=model,
            inputs={"model": value, "completions": completions},
        )
    build.add(
        "judge",
        "judge",
        "labels by the implicit reward",
        settings={"judge": job.judge, "seed": job.seed, "iteration": 0, "gold_audit": False},
        inputs={
            "completions": completions,
            "prompts": StageOutput("candidates", "prompts.jsonl"),
            "policy_logps": StageOutput("score-policy", "logps.parquet"),
            "reference_logps": StageOutput("score-reference", "logps.parquet"),
        },
    )
    memo.save()
    return Plan(job, tuple(build.stages.values()))
