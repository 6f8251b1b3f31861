"""The rewards by which the judge stage labels: one function for each judge of a recipe."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch

from spa_recipes.algo.judgment import balancing_length_penalty, implicit_reward
from spa_recipes.data.rows import Prompt
from spa_recipes.data.stage_rows import LabelledPrompt
from spa_recipes.sandbox.gold import gold_reward


class Answer(NamedTuple):
    """A completion as the judge sees it.

    Attributes:
        item, sample: as in `CompletionRow`.
        tokens: of the response.
        policy_logp, reference_logp, reward: what the tables say about it, `policy_logp` under pi_{i-1}; None where the
            judge needs no such table.
        log_ratio: log pi(y|x) - log pi_ref(y|x) of the model that judges, pi_{i-1} unless the recipe names another: of
            a table, or the difference of the two log-probs; the mean where two models judge, and the members' common
            one where they judge.
        error: standard error of the log-ratio in nats; None where it was not measured.
        earlier, peer: the log-ratio of the judge before, and of the other chain's policy; None where none is asked.
    """

    item: int
    sample: int
    text: str
    tokens: int
    policy_logp: float | None
    reference_logp: float | None
    reward: float | None
    log_ratio: float | None
    error: float | None
    earlier: float | None = None
    peer: float | None = None


class Judged(NamedTuple):
    """A prompt whose answers get rewards.

    Attributes:
        judge: the judge's section in JSON form.
        prompt: a row of the prompts.
        key: names the prompt's own random stream.
        length_penalty: a in r - a*|y|, per response token.
    """

    judge: dict[str, Any]
    prompt: LabelledPrompt
    answers: Sequence[Answer]
    key: str
    length_penalty: float


def of_implicit_reward(given: Judged) -> torch.Tensor:
    """r - a*|y| in float64, with r = beta * (log pi_{i-1}(y|x) - log pi_ref(y|x)) (paper, equation 7)."""
    lengths_K = torch.tensor([a.tokens for a in given.answers], dtype=torch.float64)
    return _implicit_rewards(given.answers, given.judge["beta"]) - given.length_penalty * lengths_K


def earlier_rewards(given: Judged) -> torch.Tensor:
    """The rewards by the judge of the iteration before, with the same length penalty."""
    before = [answer._replace(log_ratio=answer.earlier) for answer in given.answers]
    return of_implicit_reward(given._replace(answers=before))


def peer_rewards(given: Judged) -> torch.Tensor:
    """The rewards by the policy of the other chain, with the same length penalty."""
    theirs = [answer._replace(log_ratio=answer.peer) for answer in given.answers]
    return of_implicit_reward(given._replace(answers=theirs))


def of_table(given: Judged) -> torch.Tensor:
    """Rewards that a stage before this one gave: a reward model's, or those of verdicts in words."""
    return torch.tensor([a.reward for a in given.answers], dtype=torch.float64)


def of_gold(given: Judged) -> torch.Tensor:
    """The sandbox's gold reward."""
    return torch.tensor(gold_rewards(given.prompt, given.answers), dtype=torch.float64)


def of_coin(given: Judged) -> torch.Tensor:
    """Uniform numbers in [0, 1), the same whenever they are asked for."""
    return torch.tensor([_coin(f"{given.key}:{a.sample}") for a in given.answers], dtype=torch.float64)


REWARDS: dict[str, Callable[[Judged], torch.Tensor]] = {
    "implicit_reward": of_implicit_reward,
    "reward_model": of_table,
    "llm": of_table,
    "gold": of_gold,
    "random": of_coin,
}
"""By `judge.type`."""


def length_penalty(judge: dict[str, Any], groups: Callable[[], Iterable[Sequence[Answer]]]) -> float:
    """a in r - a*|y|: as the recipe says, or what balances the lengths of this iteration's chosen and rejected.

    Args:
        groups: gives the answers that can make a pair, prompt by prompt; where there are none, nothing is balanced.
    """
    wanted = judge.get("length_penalty", 0.0)
    if wanted != "balanced":
        return float(wanted)
    rewards, tokens = [], []
    for answers in groups():
        rewards.append(_implicit_rewards(answers, judge["beta"]).tolist())
        tokens.append([answer.tokens for answer in answers])
    return balancing_length_penalty(rewards, tokens) if rewards else 0.0


def gold_rewards(prompt: Prompt, answers: Sequence[Answer]) -> list[float]:
    """The sandbox's gold reward of each answer."""
    return [gold_reward(prompt["prompt"][-1]["content"], answer.text) for answer in answers]


def _implicit_rewards(answers: Sequence[Answer], beta: float) -> torch.Tensor:
    return implicit_reward(torch.tensor([a.log_ratio for a in answers], dtype=torch.float64), beta)


def _coin(key: str) -> float:
    """A uniform number in [0, 1) from a text."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big") / 2**48
