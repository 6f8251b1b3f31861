"""Recipe -> plan: the stages of a run, in order, each with its inputs and its key.

The two references of the method are wired here and nowhere else: `score-i-reference` reads pi_init at every iteration
(the judge), `refine-i` reads pi_{i-1} (the training reference).
"""

from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spa_recipes.data.files import existing_path
from spa_recipes.data.questions import SHIPPED_QUESTION, load_question
from spa_recipes.data.sources import content_fingerprint, count_rows
from spa_recipes.errors import DataError, RecipeError
from spa_recipes.keys import key_material, stage_key
from spa_recipes.recipe.schema import (
    SANDBOX_MODEL,
    AlpacaEval,
    AnyRecipe,
    DatasetSource,
    EvaluateJob,
    JudgeJob,
    LlmJudge,
    Model,
    MtBench,
    Pairwise,
    Recipe,
    Sampling,
    Source,
    Training,
)
from spa_recipes.state.digests import DigestMemo

MODEL = "model"
"""Folder of a model inside the output of a stage that makes one."""

CARD, RECIPE_FILE = "README.md", "recipe.yaml"
"""What stands beside a model and tells of it: it changes nothing that the model does, and so no key."""

POLICY_KINDS = ("sft", "dpo", "refine")
"""Kinds of stages that make a policy."""

ADAPTER = "adapter"
"""Folder of the LoRA weights that were merged into that model."""

_OF_THE_REWARD_MODEL = {"model_name_or_path", "revision", "training"}
"""Settings of a judge that its reward model's stages depend on, and the labelling does not."""

HEAVY_KINDS = frozenset(
    {"sft", "dpo", "reward_model", "generate", "score", "reward", "verdicts", "refine", "evaluate", "answers"}
)
"""Kinds that load a model; only these run under `accelerate launch`."""


@dataclass(frozen=True)
class StageOutput:
    """A file or folder in another stage's output."""

    stage: str
    path: str

    def __str__(self) -> str:
        return f"{self.stage}/{self.path}"


@dataclass(frozen=True)
class External:
    """A model or dataset from outside the run; `fingerprint` stands for its content."""

    location: str
    fingerprint: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.location}@{self.revision}" if self.revision else self.location


Input = StageOutput | External


@dataclass(frozen=True)
class Stage:
    """One step of a plan.

    Attributes:
        id: unique in the plan, such as `generate-1`.
        kind: which code runs it.
        role: what it is for, with the method's symbols.
        settings: sections of the recipe that it reads, and scalars.
        inputs: what it reads, by role name.
        material: what its key is made from.
        key: 32 hex digits.
        rows: rows that it will produce or train on, if known before it runs.
    """

    id: str
    kind: str
    role: str
    settings: dict[str, Any]
    inputs: dict[str, Input]
    material: dict[str, Any]
    key: str
    rows: int | None


@dataclass(frozen=True)
class Plan:
    """A recipe (or a job of `spa judge` or `spa evaluate`) and its stages in the order in which they run."""

    recipe: AnyRecipe
    stages: tuple[Stage, ...]

    def stage(self, stage_id: str) -> Stage:
        """The stage with this id; RecipeError names the ids there are."""
        for stage in self.stages:
            if stage.id == stage_id:
                return stage
        raise RecipeError(f"no stage {stage_id!r}", fix="stages: " + ", ".join(stage.id for stage in self.stages))

    def until(self, stage_id: str | None) -> tuple[Stage, ...]:
        """The stages up to and including `stage_id`; all of them for None."""
        if stage_id is None:
            return self.stages
        return self.stages[: self.stages.index(self.stage(stage_id)) + 1]

    @property
    def initial_policy(self) -> "Input | None":
        """pi_init: what the seed stage or the first iteration starts from; None for a plan without either."""
        for stage in self.stages:
            if stage.kind in ("dpo", "generate"):
                return stage.inputs["policy"]
        return None

    def newest_model(self, done: Container[str]) -> Stage | None:
        """The last of the stages in `done` that makes a policy; None if none does."""
        makers = [stage for stage in self.stages if stage.kind in POLICY_KINDS and stage.id in done]
        return makers[-1] if makers else None


class _Builder:
    """Collects stages and computes keys as inputs become known."""

    def __init__(self, memo: DigestMemo) -> None:
        self.memo = memo
        self.stages: dict[str, Stage] = {}

    def add(
        self,
        stage_id: str,
        kind: str,
        role: str,
        *,
        settings: dict[str, Any],
        inputs: dict[str, Input],
        rows: int | None = None,
    ) -> str:
        material = key_material(kind, settings, {name: self._identity(value) for name, value in inputs.items()})
        key = stage_key(material)
        self.stages[stage_id] = Stage(stage_id, kind, role, settings, inputs, material, key, rows)
        return stage_id

    def model(self, location: str, revision: str | None) -> External:
        folder = Path(location).expanduser()
        if folder.is_dir():
            return External(str(folder), f"sha256:{self.memo.of(folder, leave_out=(CARD, RECIPE_FILE))}")
        return External(location, f"hub:{location}@{revision or 'main'}", revision)

    def file(self, location: str) -> External:
        """A file of the user's; DataError if there is none."""
        path = existing_path(location)
        if path is None or not path.is_file():
            raise DataError("no such file", where=location, fix="check the path")
        return External(str(path), f"sha256:{self.memo.of(path)}")

    def source(self, source: Source) -> External:
        fingerprint = content_fingerprint(source, self.memo.of)
        if isinstance(source, DatasetSource):
            return External(source.source, fingerprint, source.revision)
        return External("sandbox", fingerprint)

    def _identity(self, value: Input) -> str:
        if isinstance(value, External):
            return value.fingerprint
        stage = self.stages[value.stage]
        if stage.kind == "data":
            return stage_key(part_material(stage.material, value.path))
        return f"{stage.key}/{value.path}"


def part_material(material: dict[str, Any], part: str) -> dict[str, Any]:
    """What one part of the shared-out rows depends on.

    The seed labels are the same whether or not iterations follow, so a plain DPO run and a SPA run share the seed
    stage; held-out rows come first and depend on nothing else.
    """
    data = dict(material["settings"]["data"])
    iteration = int(part.removeprefix("prompts-").removesuffix(".jsonl")) if part.startswith("prompts-") else 0
    data["prompts_per_iteration"] = data["prompts_per_iteration"][:iteration]
    if part == "heldout.jsonl":
        data["seed_labels"] = None
    inputs = material["inputs"] if iteration else {"pairs": material["inputs"]["pairs"]}
    return {**material, "settings": {"data": data}, "inputs": inputs, "part": part}


def _source_settings(source: Source) -> dict[str, Any]:
    """How a source is read. Its place is left out of the key: the fingerprint stands for the content."""
    return {**source.model_dump(mode="json"), **({"source": ""} if isinstance(source, DatasetSource) else {})}


def compile_plan(recipe: Recipe, memo: DigestMemo) -> Plan:
    """Lay out the stages of a recipe.

    Raises:
        RecipeError: a chat template file or a setting does not fit.
        DataError: a local data file is missing.
    """
    build = _Builder(memo)
    seed = recipe.seed
    model = _model_settings(recipe.model, memo)
    # Rows come first: what is wrong with them is found before any model is loaded.
    data = build.add(
        "data",
        "data",
        "share out the rows",
        settings={"data": _data_settings(recipe)},
        inputs={
            "pairs": build.source(recipe.data.pairs),
            **({"prompts": build.source(recipe.data.prompts)} if recipe.data.prompts else {}),
        },
    )
    base = _base_model(recipe, build)
    init = _initial_policy(recipe, build, model, base)
    evaluate = _evaluation(recipe, build, model, init, data)
    by_seed = recipe.evaluation.reward == "seed" and bool(recipe.data.seed_labels)
    if not by_seed:
        evaluate("init", "pi_init", init)

    policy: Input = init
    if recipe.data.seed_labels:
        build.add(
            "seed",
            "dpo",
            "pi_0: DPO on the seed labels, from pi_init, reference pi_init",
            settings={"model": model, "training": recipe.seed_training, "seed": seed},
            inputs={"policy": init, "reference": init, "pairs": StageOutput(data, "seed.jsonl")},
            rows=_seed_rows(recipe),
        )
        policy = StageOutput("seed", MODEL)
        if by_seed:
            evaluate("init", "pi_init", init)
        evaluate("0", "pi_0", policy)
    reward_model = _reward_model(recipe, build, model, init)

    for i, prompts in enumerate(recipe.data.prompts_per_iteration, start=1):
        policy = _iteration(
            recipe, build, model, i, prompts, init=init, base=base, policy=policy, reward_model=reward_model
        )
        evaluate(str(i), f"pi_{i}", policy)
    _benchmarks(recipe, build, model, init=init, policy=policy)
    memo.save()
    return Plan(recipe, tuple(build.stages.values()))


def compile_judge_plan(job: JudgeJob, memo: DigestMemo) -> Plan:
    """Lay out `spa judge`: read the answers, score them under both models, label.

    Raises:
        DataError: a local data file is missing.
    """
    build = _Builder(memo)
    model = _model_settings(job.model, memo)
    models: dict[str, Input] = {
        "policy": build.model(job.model.model_name_or_path, job.model.revision),
        "reference": build.model(job.reference, job.reference_revision),
    }
    build.add(
        "candidates",
        "candidates",
        "read and tokenise the answers",
        settings={"model": model, "source": _source_settings(job.pairs)},
        inputs={**models, "pairs": build.source(job.pairs)},
    )
    completions = StageOutput("candidates", "completions.parquet")
    for role, value in models.items():
        build.add(
            f"score-{role}",
            "score",
            f"log-probs of the answers under the {role}",
            settings={"model": model},
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


def _iteration(
    recipe: Recipe,
    build: _Builder,
    model: dict[str, Any],
    i: int,
    prompts: int,
    *,
    init: Input,
    base: Input,
    policy: Input,
    reward_model: Input | None,
) -> Input:
    """Generate, judge and refine of iteration i; returns pi_i. `policy` is pi_{i-1}, `init` is pi_init."""
    sampling, judge = recipe.sampling, recipe.judge
    before = f"pi_{i - 1}"
    generate = build.add(
        f"generate-{i}",
        "generate",
        f"{sampling.n} answers per fresh prompt, sampled from {before}",
        settings={"model": model, "sampling": sampling, "seed": recipe.seed, "iteration": i},
        inputs={
            "policy": policy,
            **_beside_adapter(recipe, build, policy),
            "prompts": StageOutput("data", f"prompts-{i}.jsonl"),
        },
        rows=prompts * sampling.n,
    )
    completions = StageOutput(generate, "completions.parquet")
    judge_inputs: dict[str, Input] = {"completions": completions, "prompts": StageOutput("data", f"prompts-{i}.jsonl")}
    if judge.type == "implicit_reward":
        reference, name = _judge_reference(recipe, build, init, base)
        build.add(
            f"score-{i}-reference",
            "score",
            f"log-probs of the answers under {name}, the judge's reference",
            settings={"model": model},
            inputs={"model": reference, "completions": completions},
            rows=prompts * sampling.n,
        )
        judge_inputs["reference_logps"] = StageOutput(f"score-{i}-reference", "logps.parquet")
        if judge.recompute_policy_logps:
            build.add(
                f"score-{i}-policy",
                "score",
                f"log-probs of the answers under {before}",
                settings={"model": model},
                inputs={"model": policy, "completions": completions},
                rows=prompts * sampling.n,
            )
            judge_inputs["policy_logps"] = StageOutput(f"score-{i}-policy", "logps.parquet")
    if reward_model is not None:
        build.add(
            f"reward-{i}",
            "reward",
            "rewards of the answers by the reward model",
            settings={"model": model},
            inputs={
                "model": reward_model,
                "completions": completions,
                # A model from outside reads the texts in its own way; one from this run reads the policy's tokens.
                **({"prompts": judge_inputs["prompts"]} if isinstance(reward_model, External) else {}),
            },
            rows=prompts * sampling.n,
        )
        judge_inputs["rewards"] = StageOutput(f"reward-{i}", "rewards.parquet")
    if judge.type == "llm":
        verdicts = _verdicts(
            judge,
            f"llm-judge-{i}",
            build,
            model=model,
            sampling=sampling,
            seed=recipe.seed,
            answers=judge_inputs,
            policy=(before, {"policy": policy, **_beside_adapter(recipe, build, policy)}),
            rows=prompts * sampling.n * (sampling.n - 1),
        )
        judge_inputs["rewards"] = StageOutput(verdicts, "rewards.parquet")
    build.add(
        f"judge-{i}",
        "judge",
        f"{before} labels its own answers" if judge.type == "implicit_reward" else f"labels by the {judge.type} judge",
        settings={
            "judge": {"type": judge.type}
            if judge.type == "llm"
            else judge.model_dump(mode="json", exclude=_OF_THE_REWARD_MODEL),
            "seed": recipe.seed,
            "iteration": i,
            "gold_audit": _has_gold(recipe),
        },
        inputs=judge_inputs,
        rows=prompts,
    )
    lam = recipe.lambda_of(i)
    replay = {"seed_pairs": StageOutput("data", "seed.jsonl")} if recipe.refine.seed_replay else {}
    build.add(
        f"refine-{i}",
        "refine",
        f"pi_{i}: refined DPO on the judged pairs, from {before}, reference {before}",
        settings={
            "model": model,
            "training": recipe.refine,
            "noise": recipe.noise.model_copy(update={"lambdas": None}),
            "lambda": lam,
            "seed": recipe.seed,
            "iteration": i,
        },
        inputs={
            "policy": policy,
            "reference": policy,
            "judgments": StageOutput(f"judge-{i}", "judgments.jsonl"),
            "completions": completions,
            **replay,
        },
        rows=prompts,
    )
    return StageOutput(f"refine-{i}", MODEL)


def _verdicts(
    judge: LlmJudge,
    stage_id: str,
    build: _Builder,
    *,
    model: dict[str, Any],
    sampling: Sampling,
    seed: int,
    answers: dict[str, Input],
    policy: tuple[str, dict[str, Input]] | None = None,
    rows: int | None = None,
) -> str:
    """The stage in which a language model compares the answers in words, leaving their rewards and its verdicts.

    Args:
        model, sampling, seed: of the models that answer; a judge on this machine is loaded and asked in the same way.
        answers: completions and prompts.
        policy: name and inputs of the model that judges where the recipe names none.
    """
    question = Path(judge.prompt).expanduser() if judge.prompt is not None else SHIPPED_QUESTION
    load_question(question)
    # The model and the question are inputs; what else they need stands beside.
    elsewhere = ("model_name_or_path", "revision", "chat_template", "max_length", "endpoint", "prompt")
    settings: dict[str, Any] = {"judge": judge.model_copy(update=dict.fromkeys(elsewhere))}
    inputs: dict[str, Input] = {**answers, "question": build.file(str(question))}
    if judge.endpoint is not None:
        kind, name = "endpoint_verdicts", f"{judge.endpoint.model} at {judge.endpoint.base_url}"
        settings["endpoint"] = judge.endpoint
    elif judge.model_name_or_path is not None:
        kind, name = "verdicts", judge.model_name_or_path
        # The recipe's chat template is that of the models that answer.
        own = {field: value for field, value in model.items() if field != "chat_template_sha256"}
        own |= _template_settings(judge.chat_template, build.memo, "judge.chat_template")
        settings |= {**_asking(judge, own, sampling), "seed": seed}
        inputs["model"] = build.model(name, judge.revision)
    else:
        assert policy is not None
        kind, name = "verdicts", policy[0]
        settings |= {**_asking(judge, model, sampling), "seed": seed}
        inputs |= policy[1]
    role = f"{name} compares the answers in words, each pair in both orders"
    return build.add(stage_id, kind, role, settings=settings, inputs=inputs, rows=rows)


def _asking(judge: LlmJudge, model: dict[str, Any], sampling: Sampling) -> dict[str, Any]:
    """How a judge on this machine is asked: with the recipe's engine, but without sampling and with its own lengths."""
    limit, backend = judge.max_length or int(model["max_length"]), sampling.backend
    if backend.type == "vllm":
        backend = backend.model_copy(update={"max_model_len": None})  # which is for the answers
    greedy = {"n": 2, "temperature": 0.0, "top_p": 1.0, "max_tokens": judge.max_tokens, "backend": backend}
    return {
        "model": {**model, "max_length": limit, "max_prompt_length": limit - judge.max_tokens},
        "sampling": sampling.model_copy(update=greedy),
    }


def _beside_adapter(recipe: Recipe, build: _Builder, policy: Input) -> dict[str, Input]:
    """The adapter of a policy and the weights below it, where the recipe samples from these instead of their sum."""
    backend = recipe.sampling.backend
    if backend.type != "vllm" or backend.lora != "adapter" or isinstance(policy, External):
        return {}
    return {"adapter": StageOutput(policy.stage, ADAPTER), "base": build.stages[policy.stage].inputs["policy"]}


def _base_model(recipe: Recipe, build: _Builder) -> Input:
    """The model named by the recipe; the sandbox's is made by a stage of its own."""
    if recipe.model.model_name_or_path != SANDBOX_MODEL:
        return build.model(recipe.model.model_name_or_path, recipe.model.revision)
    build.add(
        "base", "init_model", "the sandbox's tiny Llama, random weights", settings={"seed": recipe.seed}, inputs={}
    )
    return StageOutput("base", MODEL)


def _initial_policy(recipe: Recipe, build: _Builder, model: dict[str, Any], base: Input) -> Input:
    """pi_init: the recipe's model, after supervised fine-tuning if the recipe asks for it."""
    if recipe.sft is None:
        return base
    build.add(
        "sft",
        "sft",
        "pi_init: supervised fine-tuning of the base model",
        settings={
            "model": model,
            "training": Training.model_validate(recipe.sft.model_dump(exclude={"data"})),
            "source": _source_settings(recipe.sft.data),
            "seed": recipe.seed,
        },
        inputs={"policy": base, "source": build.source(recipe.sft.data)},
        rows=recipe.sft.data.rows if recipe.sft.data.type == "sandbox" else None,
    )
    return StageOutput("sft", MODEL)


def _judge_reference(recipe: Recipe, build: _Builder, init: Input, base: Input) -> tuple[Input, str]:
    """The judge's reference and its name; the same in every iteration."""
    assert recipe.judge.type == "implicit_reward"
    name = recipe.judge.reference
    if name == "init":
        return init, "pi_init"
    if name == "base":
        return base, "the base model"
    return build.model(name, None), name


def _reward_model(recipe: Recipe, build: _Builder, model: dict[str, Any], init: Input) -> Input | None:
    """The judge's reward model, given or trained on the seed labels; None for other judges."""
    judge = recipe.judge
    if judge.type != "reward_model" or not recipe.iterations:
        return None
    if judge.model_name_or_path is not None:
        return build.model(judge.model_name_or_path, judge.revision)
    training = judge.training or Training.model_validate(recipe.seed_training.model_dump(exclude={"beta"}))
    build.add(
        "reward-model",
        "reward_model",
        "the judge: a reward model trained on the seed labels, from pi_init",
        settings={"model": model, "training": training, "seed": recipe.seed},
        inputs={"policy": init, "pairs": StageOutput("data", "seed.jsonl")},
        rows=_seed_rows(recipe),
    )
    return StageOutput("reward-model", MODEL)


def _evaluation(recipe: Recipe, build: _Builder, model: dict[str, Any], init: Input, data: str) -> Any:
    """A function that adds the evaluation of one policy, or does nothing where there is nothing to measure."""
    wanted = recipe.evaluation.enabled and recipe.data.heldout > 0

    def add(name: str, symbol: str, policy: Input) -> None:
        if not wanted:
            return
        inputs: dict[str, Input] = {
            "policy": policy,
            **_beside_adapter(recipe, build, policy),
            "heldout": StageOutput(data, "heldout.jsonl"),
        }
        settings: dict[str, Any] = {
            "model": model,
            # How many answers the iterations sample is nothing to the evaluation: its own number is in `evaluation`.
            "sampling": recipe.sampling.model_copy(update={"n": 2}),
            "evaluation": recipe.evaluation,
            "seed": recipe.seed,
        }
        if recipe.evaluation.reward == "seed":
            inputs |= {"reward_policy": StageOutput("seed", MODEL), "reward_reference": init}
        for role in ("reward_policy", "reward_reference"):
            if (location := getattr(recipe.evaluation, role)) is not None:
                inputs[role] = build.model(location, None)
        if name != "init":
            settings["beta"] = recipe.seed_training.beta
            inputs["init_samples"] = StageOutput("evaluate-init", "samples.jsonl")
            inputs["init_logps"] = StageOutput("evaluate-init", "heldout.jsonl")
        build.add(
            f"evaluate-{name}",
            "evaluate",
            f"{symbol} on held-out prompts and pairs",
            settings=settings,
            inputs=inputs,
            rows=min(recipe.evaluation.max_prompts, recipe.data.heldout) * recipe.evaluation.responses_per_prompt,
        )

    return add


def _seed_rows(recipe: Recipe) -> int | None:
    """Seed labels as a count; None for a share of a dataset whose size is not known without loading it."""
    labels = recipe.data.seed_labels
    if isinstance(labels, int):
        return labels
    rows = count_rows(recipe.data.pairs)
    return None if rows is None else round(labels * rows)


def _has_gold(recipe: Recipe) -> bool:
    return recipe.data.pairs.type == "sandbox"


def _model_settings(section: Model, memo: DigestMemo) -> dict[str, Any]:
    """The model section for stages: where the weights come from is an input and not part of it."""
    settings = section.model_dump(mode="json", exclude={"model_name_or_path", "revision", "num_parameters"})
    return settings | _template_settings(section.chat_template, memo, "model.chat_template")


def _template_settings(template: str | None, memo: DigestMemo, key: str) -> dict[str, Any]:
    """A chat template for stages: the file and its content."""
    if template is None:
        return {"chat_template": None}
    if not Path(template).is_file():
        raise RecipeError(f"{key}: no file {template}", fix="name a Jinja file")
    return {"chat_template": template, "chat_template_sha256": memo.of(Path(template))}


def _data_settings(recipe: Recipe) -> dict[str, Any]:
    data = recipe.data
    return {
        **data.model_dump(mode="json", exclude={"pairs", "prompts"}),
        "pairs": _source_settings(data.pairs),
        "prompts": _source_settings(data.prompts) if data.prompts else None,
    }


# --- benchmarks

ALPACA_EVAL_PROMPTS = "tatsu-lab/alpaca_eval"
"""The dataset on the Hub that AlpacaEval's prompts come from where no file is given."""

_BENCHMARK_IDS = ("alpaca-eval", "mt-bench", "pairwise")


def is_of_benchmark(stage: Stage) -> bool:
    """Whether a stage belongs to one of the field's benchmarks."""
    return stage.id.startswith(_BENCHMARK_IDS)


@dataclass(frozen=True)
class _Subject:
    """What a benchmark is run on.

    Attributes:
        name: what the model is called in the benchmark's files.
        model: the model section for stages.
        policy: the model.
        sampling: with the engine to sample with.
        judge, init, prompts: what a pairwise comparison takes where it names nothing else: policy and reference of an
            implicit reward, the model to compare with, and the prompts.
    """

    name: str
    model: dict[str, Any]
    policy: Input
    sampling: Sampling
    seed: int
    judge: dict[str, Input]
    init: Input | None = None
    prompts: StageOutput | None = None


def compile_evaluate_plan(job: EvaluateJob, memo: DigestMemo) -> Plan:
    """Lay out `spa evaluate`: answer the benchmark's prompts, then judge or compare the answers.

    Raises:
        DataError: a local file is missing.
    """
    build = _Builder(memo)
    policy = build.model(job.model.model_name_or_path, job.model.revision)
    sampling = Sampling(backend=job.backend)
    _benchmark(
        job.benchmark,
        "",
        build,
        _Subject(job.name, _model_settings(job.model, memo), policy, sampling, job.seed, judge={}),
    )
    memo.save()
    return Plan(job, tuple(build.stages.values()))


def _benchmarks(recipe: Recipe, build: _Builder, model: dict[str, Any], *, init: Input, policy: Input) -> None:
    """The benchmarks of the final policy; a second one of a kind gets a number."""
    subject = _Subject(
        recipe.name,
        model,
        policy,
        recipe.sampling,
        recipe.seed,
        judge={"policy": StageOutput("seed", MODEL), "reference": init} if recipe.data.seed_labels else {},
        init=init,
        prompts=StageOutput("data", "heldout.jsonl"),
    )
    for index, benchmark in enumerate(recipe.evaluation.benchmarks):
        before = sum(other.type == benchmark.type for other in recipe.evaluation.benchmarks[:index])
        _benchmark(benchmark, f"-{before + 1}" if before else "", build, subject)


def _benchmark(benchmark: AlpacaEval | MtBench | Pairwise, number: str, build: _Builder, subject: _Subject) -> None:
    if isinstance(benchmark, AlpacaEval):
        _alpaca_eval(benchmark, f"alpaca-eval{number}", build, subject)
    elif isinstance(benchmark, MtBench):
        _mt_bench(benchmark, f"mt-bench{number}", build, subject)
    else:
        _pairwise(benchmark, f"pairwise{number}", build, subject)


def _answers(
    benchmark: AlpacaEval | MtBench | Pairwise,
    stage_id: str,
    build: _Builder,
    subject: _Subject,
    *,
    inputs: dict[str, Input],
    settings: dict[str, Any],
    policy: Input | None = None,
) -> str:
    """The stage that answers a benchmark's prompts."""
    limit = benchmark.max_length or int(subject.model["max_length"])
    sampling = {name: getattr(benchmark, name) for name in ("max_tokens", "top_p")}
    if not isinstance(benchmark, MtBench):  # which has its own temperatures
        sampling["temperature"] = benchmark.temperature
    return build.add(
        stage_id,
        "answers",
        f"answers to the prompts of {benchmark.type}" + (f" by {policy}, the other model" if policy else ""),
        settings={
            "benchmark": benchmark.type,
            "model": {**subject.model, "max_length": limit, "max_prompt_length": limit - benchmark.max_tokens},
            # How many answers the iterations sample is nothing to a benchmark.
            "sampling": subject.sampling.model_copy(update={"n": 2, **sampling}),
            "seed": subject.seed,
            **settings,
        },
        inputs={"policy": policy or subject.policy, **inputs},
    )


def _alpaca_eval(benchmark: AlpacaEval, name: str, build: _Builder, subject: _Subject) -> None:
    instructions = (
        build.file(benchmark.prompts)
        if benchmark.prompts is not None
        else External(ALPACA_EVAL_PROMPTS, f"hub:{ALPACA_EVAL_PROMPTS}@main")
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


def _mt_bench(benchmark: MtBench, name: str, build: _Builder, subject: _Subject) -> None:
    questions = build.file(benchmark.questions)
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
        "mt_bench_judge",
        f"MT-Bench: {benchmark.endpoint.model} grades every turn",
        settings={
            "endpoint": benchmark.endpoint,
            "judge_max_tokens": benchmark.judge_max_tokens,
            "name": subject.name,
        },
        inputs={
            "questions": questions,
            "answers": StageOutput(answers, f"model_answer/{subject.name}.jsonl"),
            "judge_prompts": build.file(benchmark.judge_prompts),
            **({"reference_answers": build.file(references)} if references is not None else {}),
        },
    )


def _pairwise(benchmark: Pairwise, name: str, build: _Builder, subject: _Subject) -> None:
    source = benchmark.prompts or DatasetSource(source="heldout.jsonl")
    prompts = subject.prompts if benchmark.prompts is None else build.source(benchmark.prompts)
    other = subject.init if benchmark.against == "init" else build.model(benchmark.against, None)
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
                settings={"source": _source_settings(source)},
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


def _comparison(benchmark: Pairwise, name: str, build: _Builder, subject: _Subject, versus: str) -> dict[str, Input]:
    """The stages in which a judge reads both answers, and what they leave."""
    judge, pairs = benchmark.judge, StageOutput(versus, "pairs.jsonl")
    if judge.type == "reward_model":
        build.add(
            f"{name}-rewards",
            "reward",
            "rewards of both answers by the reward model",
            settings={"model": subject.model},
            inputs={
                "model": build.model(judge.model_name_or_path, judge.revision),
                "completions": StageOutput(versus, "completions.parquet"),
                "prompts": pairs,
            },
        )
        return {"rewards": StageOutput(f"{name}-rewards", "rewards.parquet")}
    if judge.type == "gold":
        return {}
    if judge.type == "llm":
        verdicts = _verdicts(
            judge,
            f"{name}-verdicts",
            build,
            model=subject.model,
            sampling=subject.sampling,
            seed=subject.seed,
            answers={"completions": StageOutput(versus, "completions.parquet"), "prompts": pairs},
        )
        return {"verdicts": StageOutput(verdicts, "verdicts.jsonl")}
    models = (
        subject.judge
        if judge.policy is None or judge.reference is None
        else {"policy": build.model(judge.policy, None), "reference": build.model(judge.reference, None)}
    )
    build.add(
        f"{name}-candidates",
        "candidates",
        "the answers as the judge's tokens",
        settings={"model": subject.model, "source": _source_settings(DatasetSource(source="pairs.jsonl"))},
        inputs={**models, "pairs": pairs},
    )
    completions = StageOutput(f"{name}-candidates", "completions.parquet")
    for role, model in models.items():
        build.add(
            f"{name}-{role}",
            "score",
            f"log-probs of both answers under the judge's {role}",
            settings={"model": subject.model},
            inputs={"model": model, "completions": completions},
        )
    return {f"{role}_logps": StageOutput(f"{name}-{role}", "logps.parquet") for role in models}
