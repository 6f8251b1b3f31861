"""The rules of losses of the refine stage that need something of the judge, the model or the noise handling."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spa_recipes.recipe.rules import Conflict, Conflicts

if TYPE_CHECKING:
    from spa_recipes.recipe import schema


def sppo_doubts_no_pair(recipe: schema.Recipe) -> Conflicts:
    if recipe.iterations and recipe.refine.loss == "sppo" and recipe.noise.enabled:
        yield Conflict(
            ("refine.loss", "noise.enabled"),
            "sppo has no pairs whose labels could be doubted",
            "set noise.enabled to false, or choose another loss",
        )


def token_rewards_are_known(recipe: schema.Recipe) -> Conflicts:
    """The rewards of tokens are differences of log-probs that sampling kept and the judge's scoring computes."""
    if recipe.refine.token_credit is None or not recipe.iterations:
        return
    judge, key = recipe.judge, "refine.token_credit"
    if judge.type != "implicit_reward" or judge.policy != "previous" or judge.reference != "init":
        yield Conflict(
            (key,),
            "needs log-probs of the tokens under pi_init, which no judge computes but implicit_reward with reference "
            "init and policy previous",
            "choose that judge, or remove it",
        )
    elif judge.method == "tangent" or judge.min_margin_in_noise is not None:
        name = "method" if judge.method == "tangent" else "min_margin_in_noise"
        what = f"needs log-probs of tokens, and with judge.{name} log-ratios of whole answers are computed"
        yield Conflict((key, f"judge.{name}"), what, f"remove it, or judge.{name}")
    if recipe.model.dtype != "float32" or recipe.model.in_4bit:
        yield Conflict(
            (key, "model.dtype"),
            "rewards of single tokens are small differences, of which rounding leaves nothing in half precision",
            "set model.dtype to float32 (without model.lora.load_in_4bit), or remove it",
        )


def added_labels_are_not_sampled(recipe: schema.Recipe) -> Conflicts:
    """Pairs of people join the judged ones: of these answers no model of the run has sampled the tokens."""
    keys = {"loss": recipe.refine.loss == "sppo", "token_credit": recipe.refine.token_credit is not None}
    for i, labels in enumerate(recipe.data.added):
        for name in [name for name, reads in keys.items() if reads and labels.join == "seed"]:
            what = f"refine.{name} reads answers that were sampled, and those of added labels were not"
            yield Conflict((f"data.added.{i}", f"refine.{name}"), what, f"remove it, or refine.{name}")
