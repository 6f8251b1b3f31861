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
    elif members.share == "bootstrap" and judge.peers is not None:
        if members.count > 2:
            what = "with judge.peers and bootstrap, only the first member is read: the peer's chain starts from it"
            yield Conflict((COUNT,), what, "set it to 2")
    elif members.share == "bootstrap" and judge.policy != "members":
        what = (
            f"bootstrap has no effect with judge.policy {judge.policy}: only disjoint members tell how reliable it is"
        )
        yield Conflict(("seed_training.members.share", COUNT), what, "set it to disjoint, or judge.policy to members")
    elif judge.policy != "members" and judge.peers is None and not _is_evaluated(recipe):
        what = (
            f"has no effect with judge.policy {judge.policy} and without an evaluation on held-out labels, by which the"
        )
        what += " agreement of members is read"
        yield Conflict((COUNT,), what, "set data.heldout above 0 and evaluation.enabled true")
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


def peers_review(recipe: schema.Recipe) -> Conflicts:
    """There are two chains, each labels its own answers, and nobody but the peer chooses among the pairs."""
    judge, key = recipe.judge, "judge.peers"
    if judge.type != "implicit_reward" or judge.peers is None:
        return
    if recipe.seed_training.members.count == 1:
        what = "the peer's chain starts from a further seed policy, and there is none"
        yield Conflict((key,), what, f"set {COUNT} to 2")
    if judge.peers.forget_rate == 0:
        what = "0 has no effect: both chains learn from all their pairs"
        yield Conflict((f"{key}.forget_rate", key), what, f"raise it, or remove {key}")
    if judge.policy != "previous":
        what = f"each chain labels its own answers, and judge.policy {judge.policy} labels in its place"
        yield Conflict((key, "judge.policy"), what, "remove it, or set judge.policy to previous")
    if judge.keep < 1:
        what = "chooses among the pairs, which the peer of judge.peers does"
        yield Conflict(("judge.keep", key), what, f"remove it, or {key}")
    if judge.consistency:
        what = "weighs doubtful labels, which the peer of judge.peers leaves out"
        yield Conflict(("judge.consistency", key), what, f"remove it, or {key}")


def reliability_is_measured(recipe: schema.Recipe) -> Conflicts:
    members = recipe.seed_training.members
    if recipe.evaluation.min_judge_reliability is None:
        return
    if not _is_evaluated(recipe):
        what, fix = "needs an evaluation on held-out labels", "set data.heldout above 0 and evaluation.enabled true"
        yield Conflict(("evaluation.min_judge_reliability",), what, fix)
    elif members.count == 1 or members.share != "disjoint":
        yield Conflict(
            ("evaluation.min_judge_reliability",),
            "needs members that learned from disjoint shares of the seed labels",
            f"set {COUNT} to 2 and seed_training.members.share to disjoint",
        )


def consistency_compares_two(recipe: schema.Recipe) -> Conflicts:
    """The judge of an iteration is another one than that of the iteration before, by the same reference."""
    judge, key = recipe.judge, ("judge.consistency",)
    if judge.type != "implicit_reward" or not judge.consistency:
        return
    if recipe.iterations < 2:
        yield Conflict(key, "compares the judges of two iterations", "remove it, or add an iteration")
    if recipe.refine.loss == "sppo":
        yield Conflict(key, "weighs the labels of pairs, which loss sppo does not read", "remove it")
    if judge.policy != "previous":
        what = f"compares pi_{{i-2}} with pi_{{i-1}} as judges, and judge.policy {judge.policy} judges in their place"
        yield Conflict(key, what, "remove it, or set judge.policy to previous")
    if judge.reference == "previous":
        what = "compares two judges with one reference, and judge.reference previous is another one in each iteration"
        yield Conflict(key, what, "remove it, or set judge.reference to init")


def _is_evaluated(recipe: schema.Recipe) -> bool:
    return recipe.evaluation.enabled and recipe.data.heldout > 0
