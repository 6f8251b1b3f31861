"""Measures a policy on rows that no training saw: sampled answers, rewards, and agreement with human labels."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from spa_recipes.algo.interval import paired_interval
from spa_recipes.algo.winrate import length_controlled_win_rate, outcomes
from spa_recipes.data.refusals import is_refusal
from spa_recipes.data.rows import Message, PairRow, read_rows, write_jsonl
from spa_recipes.data.stage_rows import SampleRow
from spa_recipes.data.tables import CompletionRow
from spa_recipes.generation.scoring import Scored
from spa_recipes.recipe.schema import Evaluation, Sampling
from spa_recipes.sandbox.gold import gold_reward
from spa_recipes.stages.common import mean, model_section, share
from spa_recipes.stages.context import NO_RESULT, Context, Result
from spa_recipes.stages.generate import Sampler, is_cut, is_thinking, sampled, sampler_of
from spa_recipes.stages.heldout import heldout_rows, label_accuracy, log_ratios_in_twos
from spa_recipes.stages.score import score


def run(context: Context) -> Result:
    """Write `samples.jsonl` (answers to held-out prompts) and `heldout.jsonl` (what judges the held-out pairs).

    The latter are log-probs of the policy, or, where both models are read together, its log-ratios against pi_init,
    which pi_init itself has none of.
    """
    pairs = read_rows(context.input("heldout"), PairRow)
    sampler = sampler_of(context, Sampling.model_validate(context.spec.settings["sampling"]))
    rows = heldout_rows(context, sampler.renderer, pairs)
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
        metrics |= label_accuracy(context, rows)
    return Result(len(samples), sum(sample["tokens"] for sample in samples), metrics)


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
        found = log_ratios_in_twos(context, "to-init", ("policy", "init"), items, stack="stack")
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
        found = log_ratios_in_twos(
            context, "reward", ("reward_policy", "reward_reference"), items, stack="reward_stack"
        )
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
