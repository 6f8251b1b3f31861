"""What a run's figures say against it, each with the keys that change it: nothing was learned, or it ran away.

Every rule is a function of the recipe and of the figures of finished stages, and of nothing else.
"""

import math
from collections.abc import Callable, Iterator, Mapping

from spa_recipes.recipe.schema import PreferenceTraining, Recipe
from spa_recipes.report.answers import CONTROL
from spa_recipes.report.figures import PERCENT, REFINED, interval, phrase, win_rate
from spa_recipes.report.trends import Trend, series
from spa_recipes.state.stagedir import Manifest

Found = Mapping[str, Manifest]
"""Manifests of the finished stages, by id, in the order of the plan."""
Rule = Callable[[Recipe, Found], Iterator[str]]

LN_2 = math.log(2)
"""The loss of a pair before the first step, where its margin is 0."""
NEAR_LN_2 = 0.005
"""A mean loss so near to ln 2 is that of margins of 0.01: no label can be told from it."""
ABOVE_LN_2 = 0.02
ALL_THE_SAME = 0.9
"""Share of answers that are still pi_init's."""
MUCH_LONGER = 1.5
"""Growth of the answers that is told: mean tokens over those of pi_init."""
FAVOURS_LENGTH = 1.25
"""Mean tokens of chosen answers over those of rejected ones."""
FALLS_FAR = 0.1
"""A fall of the reward of chosen answers: 1 nat at beta 0.1."""
MOST = 0.5
RELIABLE = 0.6
"""How often a judge should be right on the policy's own answers: below it, training on its labels undid what was
learned."""

JUDGED = (
    Trend("label accuracy", "evaluate", "heldout_accuracy"),
    Trend("judge's accuracy on its own samples", "judge", "accuracy_vs_gold", shift=1),
)
"""How good the judge is, by two measures."""


def warnings(recipe: Recipe, found: Found) -> list[str]:
    """All warnings of a run as sentences, without the stop at their end."""
    return [text for rule in RULES for text in rule(recipe, found)]


def loss_stays(recipe: Recipe, found: Found) -> Iterator[str]:
    """A training whose loss is that of a policy which prefers nothing, or worse."""
    for stage in found.values():
        section = _section(recipe, stage)
        loss = _figure(stage, "train_loss")
        if section is None or loss is None or loss < LN_2 - NEAR_LN_2:
            continue
        name, settings = section
        rate, epochs = f"{name}.learning_rate ({settings.learning_rate:g})", f"{name}.num_train_epochs"
        if loss > LN_2 + ABOVE_LN_2:
            yield f"the loss of {stage.id} is {loss:.3f}, above the ln 2 (0.693) that it began with: lower {rate}"
            continue
        labels = "" if stage.kind in REFINED else ", or give more labels (data.seed_labels)"
        yield (
            f"nothing was learned in {stage.id}: its loss stayed at ln 2 ({loss:.3f}) over {_steps(stage)}. Raise "
            f"{rate} or {epochs} ({settings.num_train_epochs}){labels}"
        )


def answers_stay(recipe: Recipe, found: Found) -> Iterator[str]:
    """A policy that answers as pi_init does, to the letter."""
    for stage in _evaluations(found):
        same = _figure(stage, "same_as_init")
        if same is not None and same >= ALL_THE_SAME:
            section = "seed_training" if stage.id == "evaluate-0" else "refine"
            yield (
                f"{PERCENT.format(same)} of the answers of {_policy(stage)} are those of pi_init, to the letter: raise "
                f"{section}.learning_rate or {section}.num_train_epochs"
            )


def win_rate_says_nothing(recipe: Recipe, found: Found) -> Iterator[str]:
    """The newest policy is not shown to be better than pi_init, or is shown to be worse."""
    name = "win_rate_vs_init"
    rated = [stage for stage in _evaluations(found) if _figure(stage, name) is not None]
    if not rated:
        return
    newest = rated[-1]
    low, high = interval(newest, name)
    told = f"the win rate of {_policy(newest)}, {win_rate(newest, name)},"
    if high < 0.5:
        yield f"{told} is below 50 %: its judge prefers the answers of pi_init. Lower the learning rates"
    elif low <= 0.5:
        yield (
            f"{told} may be 50 %: it is not shown that anything became better. More held-out prompts (data.heldout, "
            "evaluation.max_prompts) narrow the interval; more labels (data.seed_labels), a higher learning_rate or "
            "more num_train_epochs move it"
        )


def rewards_fall(recipe: Recipe, found: Found) -> Iterator[str]:
    """A training that makes both answers of a pair less probable, by more than it tells them apart."""
    for stage in found.values():
        section = _section(recipe, stage)
        chosen, rejected = (_figure(stage, f"rewards/{side}") for side in ("chosen", "rejected"))
        if section is None or chosen is None or rejected is None:
            continue
        if max(chosen, rejected) < 0 and -chosen > max(FALLS_FAR, chosen - rejected):
            anchor = " or set refine.sft_weight" if stage.kind in REFINED else ""
            yield (
                f"{stage.id} runs away: it made chosen answers less probable, too (reward {chosen:.2f}; rejected "
                f"{rejected:.2f}). Lower {section[0]}.learning_rate or {section[0]}.num_train_epochs, raise "
                f"{section[0]}.beta{anchor}"
            )


def answers_grow(recipe: Recipe, found: Found) -> Iterator[str]:
    """Answers that have become much longer than those of pi_init."""
    lengths = {stage.id: _figure(stage, "mean_tokens") for stage in _evaluations(found)}
    first, (newest, now) = lengths.get("evaluate-init"), [*lengths.items()][-1] if lengths else ("", None)
    if first and now and now > MUCH_LONGER * first:
        yield (
            f"the answers grew from {first:.0f} tokens (pi_init) to {now:.0f} ({_policy(found[newest])}): set "
            "judge.length_penalty to balanced, or lower refine.learning_rate"
        )


def judge_favours_length(recipe: Recipe, found: Found) -> Iterator[str]:
    """A judge whose chosen answers are much longer than the others."""
    for stage in found.values():
        chosen, rejected = (_figure(stage, f"{side}_tokens") for side in ("chosen", "rejected"))
        if stage.kind == "judge" and chosen and rejected and chosen > FAVOURS_LENGTH * rejected:
            remedy = (
                "set judge.length_penalty to balanced"
                if recipe.judge.type == "implicit_reward"
                else "look at its labels, or take judge.type implicit_reward with judge.length_penalty"
            )
            yield (
                f"the judge of {stage.id} favours length: chosen answers have {chosen:.0f} tokens, rejected ones "
                f"{rejected:.0f}; {remedy}"
            )


def answers_are_cut(recipe: Recipe, found: Found) -> Iterator[str]:
    """Most answers end at max_tokens, or spend their tokens on a think block."""
    for stage in found.values():
        if stage.kind not in ("generate", "evaluate"):
            continue
        cut, thinking = (_figure(stage, name) or 0.0 for name in ("length_cut", "thinking"))
        limit = f"sampling.max_tokens ({recipe.sampling.max_tokens})"
        if thinking > MOST:
            yield (
                f"{PERCENT.format(thinking)} of the answers of {stage.id} hold a think block"
                + (f", and {PERCENT.format(cut)} are cut" if cut else "")
                + ": set model.chat_template_kwargs to {enable_thinking: false} if the model's template knows it, or "
                f"raise {limit}"
            )
        elif cut > MOST:
            yield (
                f"{PERCENT.format(cut)} of the answers of {stage.id} are cut at {limit}: raise it; a model that thinks "
                "first may need model.chat_template_kwargs, such as {enable_thinking: false}"
            )


def judge_falls(recipe: Recipe, found: Found) -> Iterator[str]:
    """The judge is worse at the end than at the beginning."""
    for trend in JUDGED:
        values = series(found, trend)
        if len(values) > 1 and values[-1][1] < values[0][1]:
            first, last = (PERCENT.format(value) for _, value in (values[0], values[-1]))
            yield f"the {trend.label} fell from {first} to {last}: later labels are less to be trusted"


def judge_knows_little(recipe: Recipe, found: Found) -> Iterator[str]:
    """Members agree hardly more often than coins do on the policy's own answers."""
    for stage in found.values():
        reliability = _figure(stage, "reliability")
        if stage.kind == "reliability" and reliability is not None and reliability < RELIABLE:
            number = stage.id.removeprefix("reliability-")
            agreed, known = (PERCENT.format(stage.number(f"{on}_agreement")) for on in ("member", "heldout"))
            yield (
                f"the labels of judge-{number} are hardly to be trusted ({phrase(stage, 'reliability')}): its members "
                f"agree on {agreed} of its pairs, {known} of held-out ones. Lower "
                "seed_training.learning_rate, give more labels (data.seed_labels), or let "
                "evaluation.min_judge_reliability stop there"
            )


RULES: tuple[Rule, ...] = (
    loss_stays,
    answers_stay,
    win_rate_says_nothing,
    rewards_fall,
    answers_grow,
    judge_favours_length,
    answers_are_cut,
    judge_falls,
    judge_knows_little,
)
"""In the order in which they are told."""


def _section(recipe: Recipe, stage: Manifest) -> tuple[str, PreferenceTraining] | None:
    """The settings of a training whose loss begins at ln 2, with their name; None of any other stage."""
    if stage.kind in ("dpo", "member"):
        return "seed_training", recipe.seed_training
    refine = recipe.refine
    plain = refine.loss == "sigmoid" and refine.divergence == "reverse_kl" and not refine.sft_weight
    return ("refine", refine) if stage.kind in REFINED and plain and not refine.reference_mix else None


def _figure(stage: Manifest, name: str) -> float | None:
    """A figure of a stage; None if the stage did not measure it."""
    return None if stage.metrics.get(name) is None else stage.number(name)


def _steps(stage: Manifest) -> str:
    steps = int(stage.number("steps"))
    return f"{steps} step{'s' if steps != 1 else ''}"


def _evaluations(found: Found) -> list[Manifest]:
    """Of the run's own policies, in their order."""
    return [stage for stage in found.values() if stage.kind == "evaluate" and stage.id != CONTROL]


def _policy(evaluation: Manifest) -> str:
    return "pi_" + evaluation.id.removeprefix("evaluate-")
