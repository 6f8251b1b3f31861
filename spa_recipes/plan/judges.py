"""The judges of a recipe: for each, the stages that it adds to an iteration.

A judge is a section of `recipe/schema.py` (`Judge`), a fragment here, and a function in `stages/judge_rewards.py` that
gives the rewards of a prompt's answers. The stage `judge-i` labels by these, whichever judge they come from.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from spa_recipes.plan.adapters import sampled_with, stack
from spa_recipes.plan.kinds import MODEL
from spa_recipes.plan.log_ratios import LOG_RATIOS_INPUT, add_log_ratios, of_both_models
from spa_recipes.plan.members import members_judge, members_of, tells_reliability
from spa_recipes.plan.models import Models, Named
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


class Iteration(NamedTuple):
    """What a judge knows of iteration i.

    Attributes:
        chain: ends the ids of its stages: nothing in the run's own chain.
        policy: pi_{i-1}, which answered the prompts; `before` is its name.
        earlier: pi_{i-2}, and pi_init in the first iteration.
        peer: the other chain's pi_{i-1}; None where there is one chain.
        prompts: fresh prompts, and `completions` their answers; `rows` counts the answers.
    """

    number: int
    chain: str
    before: str
    policy: Input
    earlier: Named
    peer: Named | None
    prompts: StageOutput
    completions: StageOutput
    rows: int


class Judging(NamedTuple):
    """What a judge hands to the stage that labels: its inputs besides prompts and answers, and its settings.

    Attributes:
        labels_by: `members` where they judge; a key holds no `judge.policy`.
        members: what is read to tell how far members agree on the pairs; nothing where that is not told.
    """

    inputs: dict[str, Input]
    settings: Section
    role: str
    labels_by: str = ""
    members: Mapping[str, Input] = MappingProxyType({})


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
    reference_of, judges_of = _reference(judge, build, models), _judges(judge, recipe, build, models)
    # The labels depend on the log-ratios only, whose models are inputs; how many a peer leaves is another setting.
    settings = judge.model_copy(update={"method": "auto", "peers": None})
    first = settings.model_copy(update={"consistency": False})  # where there is no earlier judge
    together = of_both_models(recipe.model, judge.method, with_noise=judge.min_margin_in_noise is not None)
    every = members_of(recipe) if members_judge(recipe) else []
    every_member = {f"member{m}": member for m, member in enumerate(every, 1)}

    def members_in(iteration: Iteration) -> dict[str, Named]:
        """The members that read the answers of an iteration: they say nothing of the peer's."""
        return {} if iteration.chain else every_member

    def judging_of(iteration: Iteration, who: tuple[Named, ...], tables: dict[str, Input]) -> Judging:
        role, ensemble = _role(who, iteration, judge), judge.policy == "members"
        if _compared(judge, iteration):
            role += f"; {iteration.earlier.name} ranks them, too, for the consistency of the labels"
        of_members = {name: table for name, table in tables.items() if name.startswith("member")}
        read = {name: table for name, table in tables.items() if ensemble or name not in of_members}
        if not tells_reliability(recipe):
            of_members = {}
        if of_members and "reference_logps" in tables:
            of_members["reference_logps"] = tables["reference_logps"]
        asked = settings if _compared(judge, iteration) else first
        return Judging(read, asked, role, judge.policy if ensemble else "", of_members)

    def from_both(iteration: Iteration) -> Judging:
        reference, who = reference_of(iteration), judges_of(iteration)
        of_policies = [] if judge.policy == "members" else zip(("", "seed"), who, strict=False)
        inputs: dict[str, Input] = {}
        tables: dict[Input, StageOutput] = {}
        compared = [("earlier", iteration.earlier)] if _compared(judge, iteration) else []
        for prefix, judging in (*of_policies, *compared, *members_in(iteration).items(), *_reviewing(iteration)):
            adapter = stack("adapter", recipe, build, judging.model, models.init)
            if judging.model not in tables:
                tables[judging.model] = add_log_ratios(
                    build,
                    f"log-ratios-{iteration.number}-{prefix}".rstrip("-") + iteration.chain,
                    f"log-ratios of the answers: {judging.name} against {reference.name}, the judge's reference",
                    model=models.settings,
                    method=judge.method,
                    inputs={
                        "policy": reference.model if adapter else judging.model,
                        "reference": reference.model,
                        **adapter,
                        "completions": iteration.completions,
                    },
                    rows=iteration.rows,
                )
            inputs[f"{prefix}_{LOG_RATIOS_INPUT}".lstrip("_")] = tables[judging.model]
        return judging_of(iteration, who, inputs)

    def from_each(iteration: Iteration) -> Judging:
        reference, who = reference_of(iteration), judges_of(iteration)
        scored = [("reference", reference.model, f"{reference.name}, the judge's reference")]
        if judge.recompute_policy_logps:
            scored.append(("policy", iteration.policy, iteration.before))
        if judge.policy != "members":
            if who[0].model != iteration.policy:  # whose log-probs no sampling kept
                scored.append(("judging", who[0].model, f"{who[0].name}, which judges"))
            scored += [("seed", other.model, f"{other.name}, which judges, too") for other in who[1:]]
        if _compared(judge, iteration):
            scored.append(("earlier", iteration.earlier.model, f"{iteration.earlier.name}, the judge before"))
        scored += [(role, member.model, f"the member {member.name}") for role, member in members_in(iteration).items()]
        scored += [(role, peer.model, f"{peer.name}, the peer") for role, peer in _reviewing(iteration)]
        inputs: dict[str, Input] = {}
        tables: dict[Input, StageOutput] = {}
        for role, model, words in scored:
            by_token = role == "reference" and recipe.refine.token_credit is not None
            if model not in tables:  # the peer of the first iteration is a member
                stage = build.add(
                    f"score-{iteration.number}-{role}{iteration.chain}",
                    "score",
                    f"log-probs of the answers{' and their tokens' if by_token else ''} under {words}",
                    settings={**models.settings, **({"by_token": True} if by_token else {})},
                    inputs={"model": model, "completions": iteration.completions},
                    rows=iteration.rows,
                )
                tables[model] = StageOutput(stage, "logps.parquet")
            inputs[f"{role}_logps"] = tables[model]
        return judging_of(iteration, who, inputs)

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
                {"policy": iteration.policy, **sampled_with(recipe, build, iteration.policy)},
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


def _reference(judge: ImplicitRewardJudge, build: Builder, models: Models) -> Callable[[Iteration], Named]:
    """The judge's reference in an iteration: the same in each, unless it is the policy before pi_{i-1}."""
    if judge.reference == "previous":
        return lambda iteration: iteration.earlier
    if judge.reference == "init":
        fixed = Named(models.init, "pi_init")
    elif judge.reference == "base":
        fixed = Named(models.base, "the base model")
    else:
        fixed = Named(build.model(judge.reference, None, "judge.reference"), judge.reference)
    return lambda iteration: fixed


def _judges(
    judge: ImplicitRewardJudge, recipe: Recipe, build: Builder, models: Models
) -> Callable[[Iteration], tuple[Named, ...]]:
    """The models whose rewards label the answers of an iteration: pi_{i-1}, or what `judge.policy` says.

    In the first iteration pi_{i-1} is pi_0, so `seed` and `mean` add nothing to it.
    """
    seed = Named(StageOutput("seed", MODEL) if recipe.data.seed_labels else models.init, "pi_0")

    def own(iteration: Iteration) -> Named:
        return Named(iteration.policy, iteration.before)

    if judge.policy == "previous":
        return lambda iteration: (own(iteration),)
    if judge.policy == "seed":
        return lambda iteration: (seed,)
    if judge.policy == "members":
        members = tuple(members_of(recipe))
        return lambda iteration: members
    if judge.policy == "mean":
        return lambda iteration: (own(iteration), *([seed] if iteration.number > 1 else []))
    fixed = Named(build.model(judge.policy, None, "judge.policy"), judge.policy)
    return lambda iteration: (fixed,)


def _compared(judge: ImplicitRewardJudge, iteration: Iteration) -> bool:
    """Whether the judge before this one ranks the answers, too."""
    return judge.consistency and iteration.number > 1


def _reviewing(iteration: Iteration) -> list[tuple[str, Named]]:
    """The policy of the other chain, which reviews the labels."""
    return [] if iteration.peer is None else [("peer", iteration.peer)]


def _role(who: tuple[Named, ...], iteration: Iteration, judge: ImplicitRewardJudge) -> str:
    """What a judge stage does, in words."""
    names = [judging.name for judging in who]
    if names == [iteration.before]:
        words = f"{iteration.before} labels its own answers"
    else:
        words = f"{' and '.join(names)} {'label' if names[1:] else 'labels'} the answers of {iteration.before}"
    if judge.peers is not None and iteration.peer is not None:
        kept = 1.0 - judge.peers.forget_rate_in(iteration.number)
        return f"{words}; the {kept:.0%} whose labels {iteration.peer.name} finds most probable are kept"
    return words if judge.keep == 1.0 else f"{words}; the {judge.keep:.0%} with the largest margins are kept"


def _given_or_trained(judge: RewardModelJudge, recipe: Recipe, build: Builder, models: Models) -> Input:
    """The judge's reward model: from outside, or trained here."""
    if judge.model_name_or_path is not None:
        return build.model(judge.model_name_or_path, judge.revision, "judge.model_name_or_path")
    seed = build.stages["seed"]
    training = judge.training or Training.model_validate(recipe.seed_training.model_dump(exclude={"beta", "members"}))
    build.add(
        "reward-model",
        "reward_model",
        "the judge: a reward model trained on the seed labels, from pi_init",
        settings={**models.training, "training": training, "seed": recipe.seed},
        inputs={"policy": models.init, "pairs": seed.inputs["pairs"]},
        rows=seed.rows,
    )
    return StageOutput("reward-model", MODEL)
