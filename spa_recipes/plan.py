"""Recipe -> plan: the stages of a run, in order, each with its inputs and its key.

The two references of the method are wired here and nowhere else: `score-i-reference` reads pi_init at every iteration
(the judge), `refine-i` reads pi_{i-1} (the training reference).
"""

from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spa_recipes.data.sources import content_fingerprint, count_rows
from spa_recipes.errors import RecipeError
from spa_recipes.keys import key_material, stage_key
from spa_recipes.recipe.schema import (
    SANDBOX_MODEL,
    DatasetSource,
    JudgeJob,
    Model,
    Recipe,
    Source,
    Training,
)
from spa_recipes.state.digests import DigestMemo

MODEL = "model"
"""Folder of a model inside the output of a stage that makes one."""

_OF_THE_REWARD_MODEL = {"model_name_or_path", "revision", "training"}
"""Settings of a judge that its reward model's stages depend on, and the labelling does not."""

HEAVY_KINDS = frozenset({"sft", "dpo", "reward_model", "generate", "score", "reward", "refine", "evaluate"})
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
    """A recipe (or a `spa judge` job) and its stages in the order in which they run."""

    recipe: Recipe | JudgeJob
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
        makers = [stage for stage in self.stages if stage.kind in ("sft", "dpo", "refine") and stage.id in done]
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
            return External(str(folder), f"sha256:{self.memo.of(folder)}")
        return External(location, f"hub:{location}@{revision or 'main'}", revision)

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
        inputs={"policy": policy, "prompts": StageOutput("data", f"prompts-{i}.jsonl")},
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
    build.add(
        f"judge-{i}",
        "judge",
        f"{before} labels its own answers" if judge.type == "implicit_reward" else f"labels by the {judge.type} judge",
        settings={
            "judge": judge.model_dump(mode="json", exclude=_OF_THE_REWARD_MODEL),
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
        inputs: dict[str, Input] = {"policy": policy, "heldout": StageOutput(data, "heldout.jsonl")}
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
    template = section.chat_template
    if template is not None:
        if not Path(template).is_file():
            raise RecipeError(f"model.chat_template: no file {template}", fix="name a Jinja file")
        settings["chat_template_sha256"] = memo.of(Path(template))
    return settings


def _data_settings(recipe: Recipe) -> dict[str, Any]:
    data = recipe.data
    return {
        **data.model_dump(mode="json", exclude={"pairs", "prompts"}),
        "pairs": _source_settings(data.pairs),
        "prompts": _source_settings(data.prompts) if data.prompts else None,
    }
