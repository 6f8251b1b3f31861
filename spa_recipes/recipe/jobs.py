"""The settings of the jobs beside a run: what `spa judge`, `spa sample` and `spa evaluate` do."""

# No `from __future__ import annotations`: pydantic would compile each annotation from its text at every start.

from typing import ClassVar

from pydantic import Field

from spa_recipes.recipe import document_rules, rules
from spa_recipes.recipe.schema import (
    LOCATION,
    REVISION,
    Backend,
    Benchmark,
    Compute,
    DatasetSource,
    Document,
    FreeSampling,
    JudgeOfPairs,
    Model,
    ModelSource,
    PositiveInt,
    Recipe,
    Seed,
    Storage,
    Tracking,
    TransformersBackend,
    VllmBackend,
)


class Job(Document):
    """What every job has. Nothing is trained in a job, so nothing is tracked."""

    seed: Seed = Field(42, description="Seed of the sampling, and of ties.")
    compute: Compute = Field(
        Compute.model_construct(),
        description="Where the stages run; without an executor: fork where there is no GPU, else local.",
    )
    storage: Storage = Field(Storage.model_construct(), description="Where runs are, and what stays on disk.")
    tracking: ClassVar[Tracking] = Tracking.model_construct()


class JudgeJob(Job):
    """What `spa judge` does: a judge labels pairs of responses that exist already."""

    RULES: ClassVar[rules.Rules] = (
        document_rules.judge_of_pairs_is_given,
        document_rules.judge_needs_no_run,
        document_rules.verdict_leaves_room,
        document_rules.vllm_python_has_an_effect,
    )

    name: str
    model: Model = Field(description="The policy of the implicit reward; another judge is itself the model.")
    reference: str | None = Field(None, json_schema_extra=LOCATION)
    reference_revision: str | None = Field(None, json_schema_extra=REVISION)
    adapter: str | None = Field(
        None, description="LoRA weights that make the policy of the reference.", json_schema_extra=LOCATION
    )
    pairs: DatasetSource
    judge: JudgeOfPairs
    backend: Backend = Field(TransformersBackend.model_construct(), description="Engine of an llm judge here.")


class BenchmarkedModel(ModelSource):
    """The model that answers a benchmark's prompts, or those of `spa sample`."""

    max_length: PositiveInt = Field(
        4096,
        description="Tokens of prompt and answer together; two turns of MT-Bench and their answers fit. A longer "
        "prompt loses its beginning.",
    )
    lora: ClassVar[None] = None
    num_parameters: ClassVar[None] = None


class SampleJob(Job):
    """What `spa sample` does: a model answers prompts, as in the generate stage of a run."""

    RULES: ClassVar[rules.Rules] = (document_rules.samples_fit_the_model, document_rules.vllm_python_has_an_effect)

    model: BenchmarkedModel = Field(
        description="The model; a finished run may be named. Its max_length is at most what it has positions for."
    )
    prompts: DatasetSource = Field(description="Prompts, in any of their forms; each distinct one is answered.")
    name: str = ""
    sampling: FreeSampling = Field(FreeSampling.model_construct(), description="How the responses are sampled.")

    @property
    def backend(self) -> TransformersBackend | VllmBackend:
        """The engine that samples."""
        return self.sampling.backend


class BenchmarkJob(Job):
    """What `spa evaluate` does: one of the field's benchmarks for one model."""

    RULES: ClassVar[rules.Rules] = (
        document_rules.benchmark_stands_alone,
        document_rules.vllm_has_an_effect,
        document_rules.vllm_python_has_an_effect,
    )

    model: BenchmarkedModel = Field(description="The model; a finished run may be named instead of a folder.")
    benchmark: Benchmark = Field(description="The benchmark: an entry of a recipe's `evaluation.benchmarks`.")
    name: str = Field(
        "",
        pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,79})?$",
        description="What the model is called in the results; empty: the name of its run, folder or repository.",
    )
    out: str | None = Field(
        None, min_length=1, description="Where the results go: a folder; null: evaluations/<name>-<benchmark>."
    )
    overwrite: bool = Field(
        False,
        description="Replace the results of an earlier job in that folder; a folder of something else is refused.",
    )
    backend: Backend = Field(TransformersBackend.model_construct(), description="Engine that samples.")


AnyRecipe = Recipe | JudgeJob | SampleJob | BenchmarkJob
"""Everything that a plan can be made from."""
