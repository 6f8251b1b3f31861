"""Rules on settings of several sections that need further seed policies, or other policies than the method has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spa_recipes.recipe.rules import Conflict, Conflicts

if TYPE_CHECKING:
    from spa_recipes.recipe import schema

COUNT = "seed_training.members.count"


def members_judge(recipe: schema.Recipe) -> Conflicts:
    """Members are there where something asks for them, and somebody asks where they are there."""
    members, judge, labels = recipe.seed_training.members, recipe.judge, recipe.data.seed_labels
    if judge.type == "implicit_reward":
        yield from _ensemble_is_one(judge, members)
    if members.count == 1:
        return
    if not recipe.iterations:
        what, fix = "has no effect without iterations (data.prompts_per_iteration is [])", "remove it, or add some"
        yield Conflict((COUNT,), what, fix)
    elif judge.type != "implicit_reward":
        what = f"has no effect with judge.type {judge.type}: members judge by their implicit reward"
        yield Conflict((COUNT,), what, "remove it, or set judge.type to implicit_reward")
    elif judge.policy not in ("previous", "seed", "mean", "members"):
        what = f"has no effect with judge.policy {judge.policy}, which learned nothing from the seed labels"
        yield Conflict((COUNT,), what, "remove it, or set judge.policy to members")
    elif members.share == "bootstrap" and judge.policy != "members":
        what = (
            f"bootstrap has no effect with judge.policy {judge.policy}: only disjoint members tell how reliable it is"
        )
        yield Conflict(("seed_training.members.share", COUNT), what, "set it to disjoint, or judge.policy to members")
    elif judge.reference != "init":
        what = f"members are compared with pi_init, and judge.reference is {judge.reference}"
        yield Conflict((COUNT, "judge.reference"), what, "set judge.reference to init, or remove the members")
    if isinstance(labels, int) and labels < members.count:
        yield Conflict(
            (COUNT,), f"{members.count} members have more shares than data.seed_labels ({labels})", "lower it"
        )


def _ensemble_is_one(judge: schema.ImplicitRewardJudge, members: schema.Members) -> Conflicts:
    if judge.policy == "members" and members.count == 1:
        yield Conflict(("judge.policy",), f"members needs {COUNT} above 1", "set it, or set judge.policy to seed")
    if judge.uncertainty_penalty and judge.policy != "members":
        yield Conflict(
            ("judge.uncertainty_penalty",),
            f"has no effect with judge.policy {judge.policy}, which is no ensemble",
            "set judge.policy to members, or remove it",
        )


def reliability_is_measured(recipe: schema.Recipe) -> Conflicts:
    members = recipe.seed_training.members
    if recipe.evaluation.min_judge_reliability is not None and (members.count == 1 or members.share != "disjoint"):
        yield Conflict(
            ("evaluation.min_judge_reliability",),
            "needs members that learned from disjoint shares of the seed labels",
            f"set {COUNT} to 2 and seed_training.members.share to disjoint",
        )
