"""Members: seed policies beside pi_0, each from pi_init on its own part of the seed labels, which judge.

pi_0 is trained on all seed labels and is the start of the chain, with members or without. The first member is the start
of the peer's chain, where there is one.
"""

from collections.abc import Mapping
from typing import Any

from spa_recipes.plan.adapters import stack, trained_on
from spa_recipes.plan.kinds import MODEL
from spa_recipes.plan.log_ratios import of_both_models
from spa_recipes.plan.models import Models, Named
from spa_recipes.plan.stages import Builder, Input, StageOutput
from spa_recipes.recipe.schema import PreferenceTraining, Recipe


def seed_settings(recipe: Recipe, models: Models) -> dict[str, Any]:
    """The settings of a training on the seed labels, whichever members are beside it."""
    training = PreferenceTraining.model_construct(
        **{name: getattr(recipe.seed_training, name) for name in PreferenceTraining.model_fields}
    )
    return {**models.training, "training": training, "seed": recipe.seed}


def seed_inputs(recipe: Recipe, build: Builder, models: Models) -> dict[str, Input]:
    """The inputs of a training on the seed labels: policy and reference start as pi_init."""
    return {
        "policy": models.init,
        "reference": models.init,
        **trained_on(recipe, build, models.init, models.init),
        "pairs": StageOutput("data", "seed.jsonl"),
    }


def add_members(recipe: Recipe, build: Builder, models: Models) -> None:
    """The training of each member; none where pi_0 is the only one."""
    members = recipe.seed_training.members
    for number, member in enumerate(members_of(recipe), 1):
        assert isinstance(member.model, StageOutput)
        rows = build.stages["seed"].rows
        disjoint = members.share == "disjoint"
        words = f"share {number} of {members.count}" if disjoint else f"bootstrap {number}"
        build.add(
            member.model.stage,
            "member",
            f"{member.name}: DPO on {words} of the seed labels, from pi_init, reference pi_init",
            settings={
                **seed_settings(recipe, models),
                "member": number,
                # A bootstrap is the same however many there are.
                **({"shares": members.count} if disjoint else {}),
            },
            inputs=seed_inputs(recipe, build, models),
            rows=rows if rows is None or not disjoint else len(range(number - 1, rows, members.count)),
        )
        if tells_reliability(recipe):
            _add_heldout(number, member, recipe, build, models)


def tells_reliability(recipe: Recipe) -> bool:
    """Whether the agreement of members tells how reliable the judge is: they share no label, and some are held out."""
    members, evaluation = recipe.seed_training.members, recipe.evaluation
    return members.count > 1 and members.share == "disjoint" and evaluation.enabled and recipe.data.heldout > 0


def _add_heldout(number: int, member: Named, recipe: Recipe, build: Builder, models: Models) -> None:
    """What a member says of held-out labelled pairs: there it is known how often it is right."""
    method = recipe.judge.method if recipe.judge.type == "implicit_reward" else "auto"
    inputs: dict[str, Input] = {"policy": member.model, "heldout": StageOutput("data", "heldout.jsonl")}
    settings: dict[str, Any] = {**models.settings, "beta": recipe.seed_training.beta}
    if of_both_models(recipe.model, method):
        settings["method"] = method
        inputs |= {"init": models.init, **stack("stack", recipe, build, member.model, models.init)}
    else:
        inputs["init_logps"] = StageOutput("evaluate-init", "heldout.jsonl")
    build.add(
        f"heldout-member{number}",
        "heldout",
        f"{member.name} on held-out labelled pairs",
        settings=settings,
        inputs=inputs,
        rows=2 * recipe.data.heldout,
    )


def add_reliability(
    i: int, count: int, tables: Mapping[str, Input], completions: StageOutput, build: Builder, *, rows: int
) -> None:
    """How far `count` members agree on the pairs of iteration i: what that says of its labels, without reading one."""
    build.add(
        f"reliability-{i}",
        "reliability",
        f"the agreement of the members on the pairs of judge-{i}: how reliable its labels are",
        settings={},
        inputs={
            "judgments": StageOutput(f"judge-{i}", "judgments.jsonl"),
            "completions": completions,
            **tables,
            **{f"member{m}_heldout": StageOutput(f"heldout-member{m}", "margins.jsonl") for m in range(1, count + 1)},
        },
        rows=rows,
    )


def members_of(recipe: Recipe) -> list[Named]:
    """The members that something reads, with their names; none where there is one, which is pi_0.

    All judge, or tell how reliable the judge is, or the first one alone is the start of the peer's chain.
    """
    count = recipe.seed_training.members.count
    if count == 1:
        return []
    read = count if members_judge(recipe) else 1
    return [Named(StageOutput(f"seed-member{m}", MODEL), f"pi_0^({m})") for m in range(1, read + 1)]


def members_judge(recipe: Recipe) -> bool:
    """Whether all members judge the answers of the iterations, for their labels or to tell how reliable these are."""
    judge = recipe.judge
    by_members = judge.type == "implicit_reward" and judge.policy == "members"
    return by_members or tells_reliability(recipe)
