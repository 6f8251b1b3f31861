"""`spa sample`: answers of a model to a user's prompts, sampled as in a run."""

from spa_recipes.data.commits import Commits
from spa_recipes.plan.stages import Builder, Plan, StageOutput
from spa_recipes.recipe.jobs import SampleJob
from spa_recipes.recipe.schema import Model
from spa_recipes.state.digests import DigestMemo


def compile_sample_plan(job: SampleJob, memo: DigestMemo, commits: Commits | None = None) -> Plan:
    """Lay out `spa sample`: read the prompts, answer them.

    Raises:
        DataError: a local file is missing.
    """
    build = Builder(memo, commits)
    room = job.model.max_length - job.sampling.max_tokens
    model = build.model_settings(Model.model_validate({**job.model.model_dump(), "max_prompt_length": room}))
    policy = build.model(job.model.model_name_or_path, job.model.revision, "model.model_name_or_path")
    build.add(
        "prompts",
        "prompts",
        "read the prompts",
        settings={**model, "source": job.prompts},
        inputs={"policy": policy, "prompts": build.source(job.prompts, "prompts")},
    )
    build.add(
        "generate",
        "generate",
        f"{job.sampling.n} answers to each prompt",
        settings={**model, "sampling": job.sampling, "seed": job.seed, "iteration": 0},
        inputs={"policy": policy, "prompts": StageOutput("prompts", "prompts.jsonl")},
    )
    memo.save()
    return Plan(job, tuple(build.stages.values()), build.commits.kept)
