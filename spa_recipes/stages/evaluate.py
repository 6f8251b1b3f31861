"""Measures a policy on rows that no training saw: sampled answers, rewards, and agreement with human labels."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch

from spa_recipes.algo.interval import paired_interval
from spa_recipes.algo.judgment import implicit_reward
from spa_recipes.algo.noise import is_inside
from spa_recipes.algo.winrate import length_controlled_win_rate, outcomes
from spa_recipes.data.refusals import is_refusal
from spa_recipes.data.rows import Message, PairRow, read_rows, write_jsonl
from spa_recipes.data.stage_rows import HeldoutRatioRow, HeldoutRow, SampleRow
from spa_recipes.data.tables import CompletionRow
from spa_recipes.generation.scoring import Scored
from spa_recipes.recipe.schema import Evaluation, Sampling
from spa_recipes.sandbox.gold import gold_reward
from spa_recipes.stages.common import mean, model_section, share, token_pair
from spa_recipes.stages.context import NO_RESULT, Context, Result
from spa_recipes.stages.generate import Sampler, is_cut, is_thinking, sampled, sampler_of
from spa_recipes.stages.log_ratios import LogRatios, log_ratios
from spa_recipes.stages.score import score, score_pairs


def run(context: Context) -> Result:
    """Write `samples.jsonl` (answers to held-out prompts) and `heldout.jsonl` (what judges the held-out pairs).

    The latter are log-probs of the policy, or, where both models are read together, its log-ratios against pi_init,
    which pi_init itself has none of.
    """
    pairs = read_rows(context.input("heldout"), PairRow)
    sampler = sampler_of(context, Sampling.model_validate(context.spec.settings["sampling"]))
    rows: list[HeldoutRow] | list[HeldoutRatioRow] | None
    if "method" not in context.spec.settings:
        rows = _heldout_logps(context, sampler, pairs)
    elif "init" in context.spec.inputs:
        rows = _heldout_ratios(context, sampler, pairs)
    else:
        rows = []
    found = _samples(context, sampler, pairs)
    if rows is None or found is None:
        return NO_RESULT
    samples, log_ratios_to_init = found
    write_jsonl(context.draft / "samples.jsonl", samples)
    write_jsonl(context.draft / "heldout.jsonl", rows)
    metrics = {**_sample_metrics(samples), "removed_ends": sampler.renderer.removed_ends}
    if "init_samples" in context.spec.inputs:
        if log_ratios_to_init is not None:  # whose mean over own samples is the divergence
            metrics["kl_to_init"] = mean(log_ratios_to_init)
        init = read_rows(context.input("init_samples"), SampleRow)
        metrics |= _against_init(samples, init)
        if "spa_samples" in context.spec.inputs:
            metrics |= _against_spa(samples, read_rows(context.input("spa_samples"), SampleRow), init)
        metrics |= _label_accuracy(context, rows)
    return Result(len(samples), sum(sample["tokens"] for sample in samples), metrics)


def _heldout_logps(context: Context, sampler: Sampler, pairs: Sequence[PairRow]) -> list[HeldoutRow] | None:
    rows = [token_pair(sampler.renderer, pair) for pair in pairs]
    logps = score_pairs(context, "heldout", model_section(context, "policy"), rows)
    if logps is None:
        return None
    return [
        {"prompt_id": pair["prompt_id"], "chosen_logp": chosen, "rejected_logp": rejected}
        for pair, (chosen, rejected) in zip(pairs, logps, strict=True)
    ]


def _heldout_ratios(context: Context, sampler: Sampler, pairs: Sequence[PairRow]) -> list[HeldoutRatioRow] | None:
    rows = [token_pair(sampler.renderer, pair) for pair in pairs]
    items = [Scored(row["prompt_ids"], ids) for row in rows for ids in (row["chosen_ids"], row["rejected_ids"])]
    found = _log_ratios(context, "heldout", ("policy", "init"), items, stack="stack")
    if found is None:
        return None
    return [
        {
            "prompt_id": pair["prompt_id"],
            "chosen_log_ratio": found.values[2 * k],
            "rejected_log_ratio": found.values[2 * k + 1],
            "standard_error": math.hypot(found.errors[2 * k], found.errors[2 * k + 1]),
        }
        for k, pair in enumerate(pairs)
    ]


def _log_ratios(
    context: Context, name: str, roles: tuple[str, str], items: list[Scored], *, stack: str
) -> LogRatios | None:
    """Log-ratios of answers, two of which are compared; with the input `stack`, those of adapters on the reference."""
    adapter = context.input(stack) if stack in context.spec.inputs else None
    policy, reference = roles if adapter is None else (roles[1], roles[1])
    return log_ratios(context, name, (policy, reference), items, _in_twos(len(items)), adapter=adapter)


def _in_twos(count: int) -> list[tuple[int, int]]:
    return [(k, k + 1) for k in range(0, count - 1, 2)]


def _samples(
    context: Context, sampler: Sampler, pairs: Sequence[PairRow]
) -> tuple[list[SampleRow], Sequence[float] | None] | None:
    """Answers to the first held-out prompts, with their rewards where a judge is known.

    With them their log-ratios against pi_init, where that is a model of this stage. None unless this process commits.
    """
    settings = Evaluation.model_validate(context.spec.settings["evaluation"])
    prompts = list({pair["prompt_id"]: pair for pair in pairs}.values())[: settings.max_prompts]
    shards = sampled(context, sampler, "samples", prompts, settings.responses_per_prompt, "evaluate")
    answers: list[CompletionRow] = shards.whole().to_pylist()
    asked = [prompts[answer["item"]]["prompt"] for answer in answers]
    judged = _rewards(context, sampler, settings, asked, answers)
    if judged is None:
        return None
    samples: list[SampleRow] = [
        {
            "prompt_id": answer["prompt_id"],
            "sample": answer["sample"],
            "prompt": prompt,
            "response": answer["text"],
            "tokens": len(answer["response_ids"]),
            "finish_reason": answer["finish_reason"],
            "reward": reward,
        }
        for answer, prompt, reward in zip(answers, asked, judged.rewards, strict=True)
    ]
    return samples, judged.to_init


class _Judged(NamedTuple):
    """What is known of answers: their rewards, and their log-ratios against pi_init, where that is at hand."""

    rewards: Sequence[float | None]
    to_init: Sequence[float] | None


def _rewards(
    context: Context,
    sampler: Sampler,
    settings: Evaluation,
    prompts: list[list[Message]],
    answers: Sequence[CompletionRow],
) -> _Judged | None:
    """A reward per answer, by the judge that the recipe names, else None for each; None unless this process commits."""
    items = [Scored(answer["prompt_ids"], answer["response_ids"]) for answer in answers]
    together, inputs = "method" in context.spec.settings, context.spec.inputs
    to_init: Sequence[float] | None = None
    if together and "init" in inputs:
        sampler.close()
        found = _log_ratios(context, "to-init", ("policy", "init"), items, stack="stack")
        if found is None:
            return None
        to_init = found.values
    if settings.reward == "gold":
        return _Judged(
            [
                gold_reward(prompt[-1]["content"], answer["text"])
                for prompt, answer in zip(prompts, answers, strict=True)
            ],
            to_init,
        )
    if settings.reward == "none":
        return _Judged([None] * len(answers), to_init)
    sampler.close()
    if together:
        # Answers to different prompts stand in for the two answers to a prompt, of which pi_init's are not at hand.
        found = _log_ratios(context, "reward", ("reward_policy", "reward_reference"), items, stack="reward_stack")
        return None if found is None else _Judged(found.values, to_init)
    policy, reference = (
        score(context, role, model_section(context, role), items) for role in ("reward_policy", "reward_reference")
    )
    if policy is None or reference is None:
        return None
    if settings.reward == "seed":  # whose reference is pi_init; the sampling kept the log-probs of the policy
        kept = [None if answer["logps"] is None else sum(answer["logps"]) for answer in answers]
        to_init = [ours - theirs for ours, theirs in zip(kept, reference, strict=True) if ours is not None]
    # Only the order of the rewards is used.
    return _Judged([ours - theirs for ours, theirs in zip(policy, reference, strict=True)], to_init or None)


def _sample_metrics(samples: Sequence[SampleRow]) -> dict[str, Any]:
    metrics: dict[str, Any] = {
        "mean_tokens": mean([sample["tokens"] for sample in samples]),
        "length_cut": share([is_cut(sample) for sample in samples]),
        "thinking": share([is_thinking(sample["response"]) for sample in samples]),
        "refusals": share([is_refusal(sample["response"]) for sample in samples]),
        "prompts": len({sample["prompt_id"] for sample in samples}),
    }
    if rewards := _rewards_in(samples):
        metrics["mean_reward"] = mean(rewards)
    return metrics


def _rewards_in(samples: Sequence[SampleRow]) -> list[float]:
    """The rewards of the samples; empty where no judge is named."""
    return [sample["reward"] for sample in samples if sample["reward"] is not None]


def _against_init(samples: Sequence[SampleRow], init: Sequence[SampleRow]) -> dict[str, Any]:
    """Win rates against pi_init's answers to the same prompts, and the share of answers that are those.

    A tie counts one half.
    """
    same = share([ours["response"] == theirs["response"] for ours, theirs in zip(samples, init, strict=True)])
    rewards, init_rewards = _rewards_in(samples), _rewards_in(init)
    if not rewards:
        return {"same_as_init": same}
    won = outcomes(rewards, init_rewards)
    ours, theirs = ([sample["tokens"] for sample in side] for side in (samples, init))
    prompts = len({sample["prompt_id"] for sample in samples})
    controlled = length_controlled_win_rate(won, ours, theirs, prompts)
    return {
        "same_as_init": same,
        "win_rate_vs_init": mean(won),
        "length_controlled_win_rate_vs_init": controlled.rate,
        "length_controlled_win_rate_vs_init_low": controlled.low,
        "length_controlled_win_rate_vs_init_high": controlled.high,
    }


def _against_spa(control: Sequence[SampleRow], spa: Sequence[SampleRow], init: Sequence[SampleRow]) -> dict[str, Any]:
    """How much better than a control SPA is on the same prompts.

    Its win rate against the control's answers, and how much more often than the control it wins against pi_init.
    """
    ours, theirs, before = (_rewards_in(samples) for samples in (spa, control, init))
    gain = [a - b for a, b in zip(outcomes(ours, before), outcomes(theirs, before), strict=True)]
    by_prompt: dict[str, list[float]] = {}
    for sample, value in zip(control, gain, strict=True):
        by_prompt.setdefault(sample["prompt_id"], []).append(value)
    differences = [mean(values) for values in by_prompt.values()]
    low, high = paired_interval(differences)
    return {
        "spa_win_rate": mean(outcomes(ours, theirs)),
        "spa_gain": mean(differences),
        "spa_gain_low": low,
        "spa_gain_high": high,
    }


def _label_accuracy(context: Context, rows: Sequence[HeldoutRow] | Sequence[HeldoutRatioRow]) -> dict[str, Any]:
    """How often the implicit reward against pi_init prefers what the human preferred; a tie counts one half."""
    beta = context.spec.settings["beta"]
    if "init" in context.spec.inputs:
        ratios = [cast(HeldoutRatioRow, row) for row in rows]
        chosen, rejected = ([row[side] for row in ratios] for side in ("chosen_log_ratio", "rejected_log_ratio"))
    else:
        init = read_rows(context.input("init_logps"), HeldoutRow)
        both = [(cast(HeldoutRow, row), before) for row, before in zip(rows, init, strict=True)]
        chosen = [row["chosen_logp"] - before["chosen_logp"] for row, before in both]
        rejected = [row["rejected_logp"] - before["rejected_logp"] for row, before in both]
    rewards = [implicit_reward(torch.tensor(side, dtype=torch.float64), beta) for side in (chosen, rejected)]
    margins = (rewards[0] - rewards[1]).tolist()
    metrics = {
        "heldout_accuracy": mean([0.5 if margin == 0 else float(margin > 0) for margin in margins]),
        "heldout_margin": mean(margins),
    }
    if "init" in context.spec.inputs:
        errors = [beta * row["standard_error"] for row in ratios]
        metrics["heldout_in_noise"] = share([is_inside(*one) for one in zip(margins, errors, strict=True)])
    return metrics
