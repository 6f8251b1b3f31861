"""Labels: which of a prompt's answers is preferred, and how surely. One rule for every kind of judge.

The rewards of the answers are the implicit reward (the method), or what it is compared with: those of a reward model,
of the verdicts of a language model, the sandbox's gold reward, or a coin.
A seeded rule breaks ties. Dropped and counted are prompts whose best and worst answers are the same text, and prompts
with an empty answer unless two distinct non-empty answers remain.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Literal

from spa_recipes.algo.judgment import largest_margins, select_pair
from spa_recipes.algo.noise import flip_probability, is_inside
from spa_recipes.data import tables
from spa_recipes.data.arrow import rows_of
from spa_recipes.data.rows import read_rows, write_jsonl
from spa_recipes.data.stage_rows import JudgedPairRow, JudgmentRow, LabelledPrompt
from spa_recipes.errors import DataError, StageError
from spa_recipes.stages.common import mean, share
from spa_recipes.stages.context import Context, Result
from spa_recipes.stages.generate import is_empty
from spa_recipes.stages.judge_rewards import REWARDS, Answer, Judged, gold_rewards, length_penalty
from spa_recipes.stages.member_tables import ensemble_of, read_members

WARN_ABOVE = 0.1
"""Share of the margins within two standard errors of zero above which the stage warns."""


def run(context: Context) -> Result:
    """Write `pairs.jsonl` (TRL's explicit form) and `judgments.jsonl` (everything known about each prompt)."""
    settings = context.spec.settings
    prompts = read_rows(context.input("prompts"), LabelledPrompt)
    groups = _answers(context)
    usable = {item: answers for item, answers in groups.items() if _has_candidates(answers)}
    without = len(groups) - len(usable)
    if not usable:
        raise _no_pairs(context, 0, without)
    penalty = length_penalty(
        settings["judge"], [[answers[k] for k in _candidates(answers)] for answers in usable.values()]
    )
    judgments: list[JudgmentRow] = []
    pairs: list[JudgedPairRow] = []
    least = settings["judge"].get("min_margin_in_noise")
    dropped = uncertain = 0
    for item, answers in usable.items():
        prompt = prompts[item]
        judgment = _judge(settings, prompt, answers, penalty)
        if answers[judgment["chosen"]].text == answers[judgment["rejected"]].text:
            dropped += 1
            continue
        if least is not None and is_inside(judgment["margin"], judgment["standard_error"], least):
            uncertain += 1
            continue
        judgments.append(judgment)
        pairs.append(_pair(judgment, prompt, answers, settings))
    if not pairs:
        raise _no_pairs(context, dropped, without, uncertain)
    kept = largest_margins([judgment["margin"] for judgment in judgments], settings["judge"].get("keep", 1.0))
    small = len(judgments) - len(kept)
    judgments, pairs = [judgments[i] for i in kept], [pairs[i] for i in kept]
    write_jsonl(context.draft / "judgments.jsonl", judgments)
    write_jsonl(context.draft / "pairs.jsonl", pairs)
    metrics = {"dropped_identical": dropped, "dropped_empty": without, "length_penalty": penalty}
    if least is not None:
        metrics["dropped_uncertain"] = uncertain
    if small:
        metrics["dropped_small_margin"] = small
    metrics |= _metrics(judgments, groups)
    metrics |= _divergence(context, groups)
    if any(name.endswith("log_ratios") for name in context.spec.inputs):
        metrics |= _noise(context, judgments)
    return Result(len(pairs), 0, metrics)


def _candidates(answers: Sequence[Answer]) -> list[int]:
    """The answers that can make the pair: not the empty ones, as beating one teaches nothing."""
    return [k for k, answer in enumerate(answers) if not is_empty(answer.text)]


def _has_candidates(answers: Sequence[Answer]) -> bool:
    """Whether no answer is empty, or two distinct non-empty ones remain."""
    candidates = _candidates(answers)
    return len(candidates) == len(answers) or len({answers[k].text for k in candidates}) > 1


def _no_pairs(context: Context, identical: int, empty: int, uncertain: int = 0) -> DataError:
    """The error for a stage that can label nothing, after so many prompts were dropped."""
    if uncertain:
        return DataError(
            f"every margin is smaller than judge.min_margin_in_noise allows ({uncertain} prompts)",
            where=context.spec.id,
            fix="lower it, or look at the log-ratios' method",
        )
    what = "every prompt's answers are the same text" if identical else "every prompt has empty answers"
    return DataError(
        f"{what} ({identical} prompts with the same answers, {empty} with empty ones)",
        where=context.spec.id,
        fix="raise sampling.temperature" if context.spec.settings["iteration"] else "give answers that differ",
    )


def _answers(context: Context) -> dict[int, list[Answer]]:
    """Answers by prompt, with what the tables of this stage's inputs say about each."""
    completions = tables.read_table(context.input("completions"), tables.COMPLETIONS)

    def column(name: str, schema: Any) -> list[float] | None:
        if name not in context.spec.inputs:
            return None
        return tables.read_values(context.input(name), completions, schema)

    policy, reference = column("policy_logps", tables.LOGPS), column("reference_logps", tables.LOGPS)
    judging, seed = column("judging_logps", tables.LOGPS), column("seed_logps", tables.LOGPS)
    rewards = column("rewards", tables.REWARDS)
    ratios = [
        tables.read_log_ratios(context.input(name), completions)
        for name in ("log_ratios", "seed_log_ratios")
        if name in context.spec.inputs
    ]
    common = None
    if context.spec.settings.get("labels_by") == "members":
        members = read_members(context, completions, reference)
        common = ensemble_of(members, context.spec.settings["judge"].get("uncertainty_penalty", 0.0))
    groups: dict[int, list[Answer]] = defaultdict(list)
    for i, row in enumerate(rows_of(completions)):
        sampled = None if row["logps"] is None else sum(row["logps"])
        ours = sampled if policy is None else policy[i]
        theirs = None if reference is None else reference[i]
        log_ratio = error = None
        if common is not None:
            log_ratio, error = common.values[i], common.errors[i] if common.errors else None
        elif ratios:
            log_ratio = mean([table.values[i] for table in ratios])
            error = math.hypot(*(table.errors[i] for table in ratios)) / len(ratios)
        elif theirs is not None:
            # The mean of two rewards with one reference is that of the mean log-prob.
            judges = ours if judging is None else judging[i]
            if judges is not None:
                log_ratio = (judges if seed is None else (judges + seed[i]) / 2) - theirs
        groups[row["item"]].append(
            Answer(
                row["item"],
                row["sample"],
                row["text"],
                len(row["response_ids"]),
                ours,
                theirs,
                None if rewards is None else rewards[i],
                log_ratio,
                error,
            )
        )
    return groups


def _judge(settings: dict[str, Any], prompt: LabelledPrompt, answers: Sequence[Answer], penalty: float) -> JudgmentRow:
    """Rewards of the answers and the pair that follows from them."""
    judge = settings["judge"]
    gold = gold_rewards(prompt, answers) if settings["gold_audit"] else None
    key = f"{settings['seed']}:{settings['iteration']}:{prompt['prompt_id']}"
    rewards = REWARDS[judge["type"]](Judged(judge, prompt, answers, key, penalty))
    candidates = _candidates(answers)
    try:
        choice = select_pair(rewards[candidates], key)
    except ValueError as error:
        raise StageError(
            f"{error}: the pair cannot be labelled",
            where=f"prompt {prompt['prompt_id']}",
            fix="look at the model's log-probs of these answers, or sample again with another seed",
        ) from None
    chosen, rejected = candidates[choice.chosen], candidates[choice.rejected]
    judgment: JudgmentRow = {
        "item": answers[0].item,
        "prompt_id": prompt["prompt_id"],
        "chosen": chosen,
        "rejected": rejected,
        "rewards": rewards.tolist(),
        "margin": choice.margin,
        "p_chosen": choice.p_chosen,
        "tied": choice.tied,
        "policy_logps": [a.policy_logp for a in answers],
        "reference_logps": [a.reference_logp for a in answers],
        "gold": gold,
        "label": prompt.get("label"),
    }
    one, other = answers[chosen].error, answers[rejected].error
    if one is not None and other is not None:
        judgment["log_ratios"] = [a.log_ratio for a in answers]
        judgment["standard_error"] = judge["beta"] * math.hypot(one, other)
    return judgment


def _pair(
    judgment: JudgmentRow, prompt: LabelledPrompt, answers: Sequence[Answer], settings: dict[str, Any]
) -> JudgedPairRow:
    chosen, rejected = judgment["chosen"], judgment["rejected"]
    pair: JudgedPairRow = {
        "prompt": prompt["prompt"],
        "chosen": [{"role": "assistant", "content": answers[chosen].text}],
        "rejected": [{"role": "assistant", "content": answers[rejected].text}],
        "chosen_score": judgment["rewards"][chosen],
        "rejected_score": judgment["rewards"][rejected],
        "margin": judgment["margin"],
        "p_chosen": judgment["p_chosen"],
        "prompt_id": prompt["prompt_id"],
        "iteration": settings["iteration"],
        "source": settings["judge"]["type"],
    }
    if "standard_error" in judgment:
        pair["standard_error"] = judgment["standard_error"]
    if "tools" in pair["prompt"][0]:  # TRL reads them from a column
        first = pair["prompt"][0].copy()
        pair["tools"] = first.pop("tools")
        pair["prompt"] = [first, *pair["prompt"][1:]]
    return pair


def _divergence(context: Context, groups: dict[int, list[Answer]]) -> dict[str, Any]:
    """KL(pi_{i-1} || pi_init) in nats per answer, by the answers that it sampled; nothing where other models judge."""
    judge, inputs = context.spec.settings["judge"], context.spec.inputs
    own = judge["type"] == "implicit_reward" and judge.get("policy", "previous") == "previous"
    to_init = own and judge.get("reference", "init") == "init"
    others = any(name.startswith(("judging_", "seed_", "member")) for name in inputs)
    if not context.spec.settings["iteration"] or not to_init or others:  # a job's models need not be these
        return {}
    known = [answer.log_ratio for answers in groups.values() for answer in answers if answer.log_ratio is not None]
    return {"sampled_kl_to_init": mean(known)} if known else {}


def _noise(context: Context, judgments: Sequence[JudgmentRow]) -> dict[str, Any]:
    """What the precision of the log-ratios does to the labels, with a warning in words where it is much."""
    # Of the model that judges; of several, all were read alike.
    name = next(name for name in context.spec.inputs if name.endswith("log_ratios"))
    choice = tables.log_ratios_choice(context.input(name))
    margins = [(j["margin"], j["standard_error"]) for j in judgments]
    inside = share([is_inside(*margin) for margin in margins])
    changed = mean([flip_probability(*margin) for margin in margins])
    metrics = {
        "method": choice["method"],
        "standard_error": mean([error for _, error in margins]),
        "labels_in_noise": inside,
        "labels_by_noise": changed,
    }
    if choice["error_check"] is not None:
        metrics["error_check"] = choice["error_check"]
    if inside > WARN_ABOVE:
        method, least = (
            ("judge.method", "judge.min_margin_in_noise:")
            if context.spec.settings["iteration"]
            else ("--method", "--min-margin-in-noise")
        )
        remedy = f"set {method} to auto" if choice["asked"] == "difference" else f"{least} 2 leaves them out"
        error = f"{metrics['standard_error']:.2g} on average, by {choice['method']}"
        context.notice(
            f"{inside:.1%} of the margins are within two standard errors of 0 ({error}): rounding decides about "
            f"{changed:.1%} of the labels; {remedy}"
        )
    return metrics


def _metrics(judgments: list[JudgmentRow], groups: dict[int, list[Answer]]) -> dict[str, Any]:
    metrics: dict[str, Any] = {
        "mean_margin": mean([j["margin"] for j in judgments]),
        "mean_p_chosen": mean([j["p_chosen"] for j in judgments]),
        "ties": sum(j["tied"] for j in judgments),
        **_lengths(judgments, groups),
    }
    decided = [gap for j in judgments if j["gold"] and (gap := j["gold"][j["chosen"]] - j["gold"][j["rejected"]]) != 0]
    if decided:
        metrics["accuracy_vs_gold"] = share([gap > 0 for gap in decided])
    labelled = [j["chosen"] == j["label"] for j in judgments if j["label"] is not None]
    if labelled:
        metrics["agreement_with_labels"] = share(labelled)
        metrics["labelled"] = len(labelled)
    return metrics


def _lengths(judgments: list[JudgmentRow], groups: dict[int, list[Answer]]) -> dict[str, float]:
    """Mean lengths of chosen and rejected answers: in tokens, or in characters where only texts are judged."""

    def mean_of(which: Literal["chosen", "rejected"], length: Callable[[Answer], int]) -> float:
        return mean([length(groups[j["item"]][j[which]]) for j in judgments])

    if not any(answer.tokens for answers in groups.values() for answer in answers):
        gap = mean_of("chosen", lambda a: len(a.text)) - mean_of("rejected", lambda a: len(a.text))
        return {"length_gap_characters": gap}
    chosen, rejected = mean_of("chosen", lambda a: a.tokens), mean_of("rejected", lambda a: a.tokens)
    return {"chosen_tokens": chosen, "rejected_tokens": rejected, "length_gap": chosen - rejected}
