"""The judges of a recipe: for each, the stages that it adds to an iteration.

A judge is a section of `recipe/schema.py` (`Judge`), a fragment here, and a function in `stages/judge_rewards.py` that
gives the rewards of a prompt's answers. The stage `judge-i` labels by these, whichever judge they come from.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from spa_recipes.plan.kinds import ADAPTER, MODEL
from spa_recipes.plan.log_ratios import add_log_ratios, of_both_models
from spa_recipes.plan.stages import Builder, External, Input, StageOutput
from spa_recipes.plan.verdicts import add_verdicts
from spa_recipes.recipe.schema import (
    ImplicitRewardJudge,
    LlmJudge,
    Recipe,
    RewardModelJudge,
    Section,
    Training,
)


class Models(NamedTuple):
    """The models of a recipe before its iterations.

    Attributes:
        settings: the model section as settings of a stage that trains no model.
        training: the same for one that does.
        base: the model that the recipe names.
        init: pi_init.
    """

    settings: dict[str, Any]
    training: dict[str, Any]
    base: Input
    init: Input


class Iteration(NamedTuple):
    """What a judge knows of iteration i.

    Attributes:
        policy: pi_{i-1}, which answered the prompts; `before` is its name.
        prompts: fresh prompts, and `completions` their answers; `rows` counts the answers.
    """

    number: int
    before: str
    policy: Input
    prompts: StageOutput
    completions: StageOutput
    rows: int


class Judging(NamedTuple):
    """What a judge hands to the stage that labels: its inputs besides prompts and answers, and its settings."""

    inputs: dict[str, Input]
    settings: Section
    role: str


Label = Callable[[Iteration], Judging]
"""Adds a judge's stages to an iteration."""

Fragment = Callable[[Recipe, Builder, Models], Label]
"""Adds what a judge needs before the first iteration, and gives what adds its stages to each of them."""


def implicit_reward(recipe: Recipe, build: Builder, models: Models) -> Label:
    """The method: the log-ratio of the policy and the judge's reference.

    In float32 the policy's log-probs are those that the generation kept, and the reference's are subtracted.
    """
    judge = recipe.judge
    assert isinstance(judge, ImplicitRewardJudge)
    reference, name = _reference(judge, build, models)
    settings = judge.model_copy(update={"method": "auto"})  # the labels depend on the log-ratios only
    together = of_both_models(recipe.model, judge.method, with_noise=judge.min_margin_in_noise is not None)

    def from_both(iteration: Iteration) -> Judging:
        ratios = add_log_ratios(
            build,
            f"log-ratios-{iteration.number}",
            f"log-ratios of the answers: {iteration.before} against {name}, the judge's reference",
            model=models.settings,
            method=judge.method,
            inputs={"policy": iteration.policy, "reference": reference, "completions": iteration.completions},
            rows=iteration.rows,
        )
        return Judging({"log_ratios": ratios}, settings, f"{iteration.before} labels its own answers")

    def from_each(iteration: Iteration) -> Judging:
        scored = [("reference", reference, f"{name}, the judge's reference")]
        if judge.recompute_policy_logps:
            scored.append(("policy", iteration.policy, iteration.before))
        inputs: dict[str, Input] = {}
        for role, model, words in scored:
            stage = build.add(
                f"score-{iteration.number}-{role}",
                "score",
                f"log-probs of the answers under {words}",
                settings=models.settings,
                inputs={"model": model, "completions": iteration.completions},
                rows=iteration.rows,
            )
            inputs[f"{role}_logps"] = StageOutput(stage, "logps.parquet")
        return Judging(inputs, settings, f"{iteration.before} labels its own answers")

    return from_both if together else from_each


def reward_model(recipe: Recipe, build: Builder, models: Models) -> Label:
    """Rewards by a reward model, which is given or is trained on the seed labels."""
    judge = recipe.judge
    assert isinstance(judge, RewardModelJudge)
    model = _given_or_trained(judge, recipe, build, models)
    settings = judge.model_copy(update={"training": None})  # the labels depend on the rewards only

    def label(iteration: Iteration) -> Judging:
        stage = build.add(
            f"reward-{iteration.number}",
            "reward",
            "rewards of the answers by the reward model",
            settings=models.settings,
            inputs={
                "model": model,
                "completions": iteration.completions,
                # A model from outside reads the texts in its own way; one from this run reads the policy's tokens.
                **({"prompts": iteration.prompts} if isinstance(model, External) else {}),
            },
            rows=iteration.rows,
        )
        return Judging({"rewards": StageOutput(stage, "rewards.parquet")}, settings, "labels by the reward_model judge")

    return label


def llm(recipe: Recipe, build: Builder, models: Models) -> Label:
    """The share of the comparisons in words that an answer won."""
    judge = recipe.judge
    assert isinstance(judge, LlmJudge)
    settings = LlmJudge(type="llm")  # all that the recipe says of it is in the verdicts

    def label(iteration: Iteration) -> Judging:
        stage = add_verdicts(
            judge,
            f"llm-judge-{iteration.number}",
            build,
            key="judge",
            model=models.settings,
            sampling=recipe.sampling,
            seed=recipe.seed,
            answers={"completions": iteration.completions, "prompts": iteration.prompts},
            policy=(
                iteration.before,
                {"policy": iteration.policy, **beside_adapter(recipe, build, iteration.policy)},
            ),
            rows=iteration.rows * (recipe.sampling.n - 1),
        )
        return Judging({"rewards": StageOutput(stage, "rewards.parquet")}, settings, "labels by the llm judge")

    return label


def control(recipe: Recipe, build: Builder, models: Models) -> Label:
    """A judge that reads nothing but the answers: the sandbox's gold reward, or a coin."""
    return lambda iteration: Judging({}, recipe.judge, f"labels by the {recipe.judge.type} judge")


FRAGMENTS: dict[str, Fragment] = {
    "implicit_reward": implicit_reward,
    "reward_model": reward_model,
    "llm": llm,
    "gold": control,
    "random": control,
}
"""By `judge.type`."""


def beside_adapter(recipe: Recipe, build: Builder, policy: Input) -> dict[str, Input]:
    """The adapter of a policy and the weights below it, where the recipe samples from these instead of their sum."""
    backend = recipe.sampling.backend
    if backend.type != "vllm" or backend.lora != "adapter" or isinstance(policy, External):
        return {}
    return {"adapter": StageOutput(policy.stage, ADAPTER), "base": build.stages[policy.stage].inputs["policy"]}


def _reference(judge: ImplicitRewardJudge, build: Builder, models: Models) -> tuple[Input, str]:
    """The judge's reference and its name; the same in every iteration."""
    if judge.reference == "init":
        return models.init, "pi_init"
    if judge.reference == "base":
        return models.base, "the base model"
    return build.model(judge.reference, None, "judge.reference"), judge.reference


def _given_or_trained(judge: RewardModelJudge, recipe: Recipe, build: Builder, models: Models) -> Input:
    """The judge's reward model: from outside, or trained here."""
    if judge.model_name_or_path is not None:
        return build.model(judge.model_name_or_path, judge.revision, "judge.model_name_or_path")
    seed = build.stages["seed"]
    training = judge.training or Training.model_validate(recipe.seed_training.model_dump(exclude={"beta"}))
    build.add(
        "reward-model",
        "reward_model",
        "the judge: a reward model trained on the seed labels, from pi_init",
        settings={**models.training, "training": training, "seed": recipe.seed},
        inputs={"policy": models.init, "pairs": seed.inputs["pairs"]},
        rows=seed.rows,
    )
    return StageOutput("reward-model", MODEL)
