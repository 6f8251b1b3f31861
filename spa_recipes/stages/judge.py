"""Labels: which of a prompt's answers is preferred, and how surely. One rule for every kind of judge.

A pair's rewards come from the implicit reward (the method), or from a reward model, the verdicts of a language model,
the sandbox's gold reward or a coin (what it is compared with).
Prompts whose best and worst answers are the same text are dropped and counted; ties are broken by a seeded rule. An
empty answer is no candidate; a prompt that has one and not two different others is dropped and counted.
"""

from collections import defaultdict
from typing import Any

from spa_recipes.algo.judgment import select_pair
from spa_recipes.data.rows import read_jsonl, write_jsonl
from spa_recipes.errors import DataError, StageError
from spa_recipes.stages.common import mean, read_table, share
from spa_recipes.stages.context import Context, Result
from spa_recipes.stages.generate import is_empty
from spa_recipes.stages.judge_rewards import REWARDS, Judged, gold_rewards, length_penalty


def run(context: Context) -> Result:
    """Write `pairs.jsonl` (TRL's explicit form) and `judgments.jsonl` (everything known about each prompt)."""
    settings = context.spec.settings
    prompts = read_jsonl(context.input("prompts"))
    groups = _answers(context)
    usable = {item: answers for item, answers in groups.items() if _has_candidates(answers)}
    without = len(groups) - len(usable)
    if not usable:
        raise _no_pairs(context, 0, without)
    penalty = length_penalty(
        settings["judge"], [[answers[k] for k in _candidates(answers)] for answers in usable.values()]
    )
    judgments, pairs, dropped = [], [], 0
    for item, answers in usable.items():
        prompt = prompts[item]
        judgment = _judge(settings, prompt, answers, penalty)
        if answers[judgment["chosen"]]["text"] == answers[judgment["rejected"]]["text"]:
            dropped += 1
            continue
        judgments.append(judgment)
        pairs.append(_pair(judgment, prompt, answers, settings))
    if not pairs:
        raise _no_pairs(context, dropped, without)
    write_jsonl(context.draft / "judgments.jsonl", judgments)
    write_jsonl(context.draft / "pairs.jsonl", pairs)
    counts = {"dropped_identical": dropped, "dropped_empty": without, "length_penalty": penalty}
    return Result(len(pairs), 0, {**counts, **_metrics(judgments, groups)})


def _candidates(answers: list[dict[str, Any]]) -> list[int]:
    """The answers that can make the pair: an empty one is never preferred, and nothing is learned from beating it."""
    return [k for k, answer in enumerate(answers) if not is_empty(answer)]


def _has_candidates(answers: list[dict[str, Any]]) -> bool:
    """Whether no answer is empty, or two different ones are left without those that are."""
    candidates = _candidates(answers)
    return len(candidates) == len(answers) or len({answers[k]["text"] for k in candidates}) > 1


def _no_pairs(context: Context, identical: int, empty: int) -> DataError:
    """The error for a stage that can label nothing, after so many prompts were dropped."""
    what = "every prompt's answers are the same text" if identical else "every prompt has empty answers"
    return DataError(
        f"{what} ({identical} prompts with the same answers, {empty} with empty ones)",
        where=context.spec.id,
        fix="raise sampling.temperature" if context.spec.settings["iteration"] else "give answers that differ",
    )


def _answers(context: Context) -> dict[int, list[dict[str, Any]]]:
    """Answers by prompt, each with its log-prob under the policy and, where there is one, the judge's reference."""
    completions = read_table(context.input("completions"))
    inputs = context.spec.inputs
    for name in ("policy", "reference"):
        if f"{name}_logps" in inputs:
            table = read_table(context.input(f"{name}_logps"))
            for row, scored in zip(completions, table, strict=True):
                assert (row["item"], row["sample"]) == (scored["item"], scored["sample"])
                row[f"{name}_logp"] = scored["logp"]
    if "rewards" in inputs:
        for row, scored in zip(completions, read_table(context.input("rewards")), strict=True):
            assert (row["item"], row["sample"]) == (scored["item"], scored["sample"])
            row["reward"] = scored["reward"]
    groups: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in completions:
        if "policy_logp" not in row and row["logps"] is not None:
            row["policy_logp"] = sum(row["logps"])
        groups[row["item"]].append(row)
    return groups


def _judge(
    settings: dict[str, Any], prompt: dict[str, Any], answers: list[dict[str, Any]], penalty: float
) -> dict[str, Any]:
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
    return {
        "item": answers[0]["item"],
        "prompt_id": prompt["prompt_id"],
        "chosen": candidates[choice.chosen],
        "rejected": candidates[choice.rejected],
        "rewards": rewards.tolist(),
        "margin": choice.margin,
        "p_chosen": choice.p_chosen,
        "tied": choice.tied,
        "policy_logps": [a.get("policy_logp") for a in answers],
        "reference_logps": [a.get("reference_logp") for a in answers],
        "gold": gold,
        "label": prompt.get("label"),
    }


def _pair(
    judgment: dict[str, Any], prompt: dict[str, Any], answers: list[dict[str, Any]], settings: dict[str, Any]
) -> dict[str, Any]:
    chosen, rejected = judgment["chosen"], judgment["rejected"]
    return {
        "prompt": prompt["prompt"],
        "chosen": [{"role": "assistant", "content": answers[chosen]["text"]}],
        "rejected": [{"role": "assistant", "content": answers[rejected]["text"]}],
        "chosen_score": judgment["rewards"][chosen],
        "rejected_score": judgment["rewards"][rejected],
        "margin": judgment["margin"],
        "p_chosen": judgment["p_chosen"],
        "prompt_id": prompt["prompt_id"],
        "iteration": settings["iteration"],
        "source": settings["judge"]["type"],
    }


def _metrics(judgments: list[dict[str, Any]], groups: dict[int, list[dict[str, Any]]]) -> dict[str, Any]:
    def tokens(judgment: dict[str, Any], which: str) -> int:
        return len(groups[judgment["item"]][judgment[which]]["response_ids"])

    metrics: dict[str, Any] = {
        "mean_margin": mean([j["margin"] for j in judgments]),
        "mean_p_chosen": mean([j["p_chosen"] for j in judgments]),
        "ties": sum(j["tied"] for j in judgments),
        "chosen_tokens": mean([tokens(j, "chosen") for j in judgments]),
        "rejected_tokens": mean([tokens(j, "rejected") for j in judgments]),
    }
    metrics["length_gap"] = metrics["chosen_tokens"] - metrics["rejected_tokens"]
    decided = [gap for j in judgments if j["gold"] and (gap := j["gold"][j["chosen"]] - j["gold"][j["rejected"]]) != 0]
    if decided:
        metrics["accuracy_vs_gold"] = share([gap > 0 for gap in decided])
    labelled = [j["chosen"] == j["label"] for j in judgments if j["label"] is not None]
    if labelled:
        metrics["agreement_with_labels"] = share(labelled)
        metrics["labelled"] = len(labelled)
    return metrics
