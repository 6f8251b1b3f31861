"""Recipe -> plan: the stages of a run, in order.

The two references of the method are wired here and nowhere else: `score-i-reference` reads pi_init at every iteration
(the judge), `refine-i` reads pi_{i-1} (the training reference).
"""

from typing import Any

from spa_recipes.data.sources import count_rows
from spa_recipes.plan.benchmarks import add_benchmarks
from spa_recipes.plan.stages import (
    ADAPTER,
    MODEL,
    Builder,
    External,
    Input,
    Plan,
    StageOutput,
    model_settings,
    source_settings,
)
from spa_recipes.plan.verdicts import add_verdicts
from spa_recipes.recipe.schema import (
    SANDBOX_MODEL,
    Recipe,
    Training,
)
from spa_recipes.state.digests import DigestMemo

_OF_THE_REWARD_MODEL = {"model_name_or_path", "revision", "training"}
"""Settings of a judge that its reward model's stages depend on, and the labelling does not."""


def compile_plan(recipe: Recipe, memo: DigestMemo) -> Plan:
    """Lay out the stages of a recipe.

    Raises:
        RecipeError: a chat template file or a setting does not fit.
        DataError: a local data file is missing.
    """
    build = Builder(memo)
    seed = recipe.seed
    model = model_settings(recipe.model, memo)
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
    add_benchmarks(recipe, build, model, init=init, policy=policy)
    memo.save()
    return Plan(recipe, tuple(build.stages.values()))


def _iteration(
    recipe: Recipe,
    build: Builder,
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
        verdicts = add_verdicts(
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


def _beside_adapter(recipe: Recipe, build: Builder, policy: Input) -> dict[str, Input]:
    """The adapter of a policy and the weights below it, where the recipe samples from these instead of their sum."""
    backend = recipe.sampling.backend
    if backend.type != "vllm" or backend.lora != "adapter" or isinstance(policy, External):
        return {}
    return {"adapter": StageOutput(policy.stage, ADAPTER), "base": build.stages[policy.stage].inputs["policy"]}


def _base_model(recipe: Recipe, build: Builder) -> Input:
    """The model named by the recipe; the sandbox's is made by a stage of its own."""
    if recipe.model.model_name_or_path != SANDBOX_MODEL:
        return build.model(recipe.model.model_name_or_path, recipe.model.revision)
    build.add(
        "base", "init_model", "the sandbox's tiny Llama, random weights", settings={"seed": recipe.seed}, inputs={}
    )
    return StageOutput("base", MODEL)


def _initial_policy(recipe: Recipe, build: Builder, model: dict[str, Any], base: Input) -> Input:
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
            "source": source_settings(recipe.sft.data),
            "seed": recipe.seed,
        },
        inputs={"policy": base, "source": build.source(recipe.sft.data)},
        rows=recipe.sft.data.rows if recipe.sft.data.type == "sandbox" else None,
    )
    return StageOutput("sft", MODEL)


def _judge_reference(recipe: Recipe, build: Builder, init: Input, base: Input) -> tuple[Input, str]:
    """The judge's reference and its name; the same in every iteration."""
    assert recipe.judge.type == "implicit_reward"
    name = recipe.judge.reference
    if name == "init":
        return init, "pi_init"
    if name == "base":
        return base, "the base model"
    return build.model(name, None), name


def _reward_model(recipe: Recipe, build: Builder, model: dict[str, Any], init: Input) -> Input | None:
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


def _evaluation(recipe: Recipe, build: Builder, model: dict[str, Any], init: Input, data: str) -> Any:
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


def _data_settings(recipe: Recipe) -> dict[str, Any]:
    data = recipe.data
    return {
        **data.model_dump(mode="json", exclude={"pairs", "prompts"}),
        "pairs": source_settings(data.pairs),
        "prompts": source_settings(data.prompts) if data.prompts else None,
    }
