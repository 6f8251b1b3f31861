"""Rows that stages hand to each other as JSON Lines: a type for each file. Standard library only.

`read_rows(path, JudgmentRow)` of `spa_recipes.data.rows` reads a file, `write_jsonl` writes one. The order of the keys
in a file is that of the rows that a stage gives to `write_jsonl`.
"""

from typing import Any, NotRequired, TypedDict

from spa_recipes.algo.verdicts import Verdict
from spa_recipes.data.rows import Message, Prompt


class LabelledPrompt(Prompt):
    """A prompt whose answers are judged; `label` is the index of the answer that is known to be better."""

    label: NotRequired[int | None]


class JudgmentRow(TypedDict):
    """`judgments.jsonl`: everything that is known about the answers to a prompt; lists are in the answers' order.

    Attributes:
        item: row of the prompt in the prompts file.
        chosen, rejected: indices of the two answers that make the pair.
        rewards: the judge's, of every answer.
        margin, p_chosen: difference of the two rewards, and its sigmoid.
        tied: whether best and worst had the same reward, so that the seeded rule chose.
        policy_logps, reference_logps: log-probs of the answers in nats, under pi_{i-1} and under the judge's reference;
            None where the judge needs none.
        gold: the sandbox's gold rewards, where it is known.
        label: as in `LabelledPrompt`.
        rank_agreement: Kendall's tau with the ranking by the judge before, where the recipe asks for it.
        log_ratios, standard_error: log pi(y|x) - log pi_ref(y|x) of the answers in nats, and what rounding does to the
            margin, in units of the margin; only where both models were read together.
    """

    item: int
    prompt_id: str
    chosen: int
    rejected: int
    rewards: list[float]
    margin: float
    p_chosen: float
    tied: bool
    policy_logps: list[float | None]
    reference_logps: list[float | None]
    gold: list[float] | None
    label: int | None
    rank_agreement: NotRequired[float]
    log_ratios: NotRequired[list[float | None]]
    standard_error: NotRequired[float]


class MemberMarginsRow(TypedDict):
    """`margins.jsonl`, row for row with `judgments.jsonl`: how much each member prefers the chosen answer, in nats."""

    item: int
    prompt_id: str
    margins: list[float]


class LabelMarginRow(TypedDict):
    """`margins.jsonl` of a member: by how much its reward prefers what the label of a held-out pair prefers."""

    prompt_id: str
    margin: float


class JudgedPairRow(Prompt):
    """`pairs.jsonl` of a judge: a pair in TRL's explicit form, row for row with `judgments.jsonl`."""

    chosen: list[Message]
    rejected: list[Message]
    chosen_score: float
    rejected_score: float
    margin: float
    p_chosen: float
    iteration: int
    source: str
    standard_error: NotRequired[float]
    tools: NotRequired[list[dict[str, Any]]]


class TraceRow(TypedDict):
    """`pairs_trace.jsonl` beside a refined model: what the detector saw of a pair.

    Attributes:
        row: index of the pair in `judgments.jsonl`.
        step: optimizer step, from 1.
        p_detect: p~ of the pair.
        margin: beta times the difference of the log-ratios.
        flagged: 1 where the loss used the softened label.
    """

    row: int
    step: int
    p_detect: float
    margin: float
    flagged: int


class VerdictRow(TypedDict):
    """`verdicts.jsonl`: a question to the llm judge.

    Attributes:
        item: row of the prompt in the prompts file.
        first, second: places of the two answers among those to the prompt, in the order in which they are shown.
        reply: the judge's text; None where the question was too long to be asked.
    """

    item: int
    prompt_id: str
    first: int
    second: int
    reply: str | None
    verdict: Verdict


class ScoreRow(TypedDict):
    """`verdicts.jsonl` of an llm judge that scores each answer alone: a question to it.

    Attributes:
        item: row of the prompt in the prompts file.
        answer: place of the answer among those to the prompt.
        sample: number of the reply, where a question is asked several times.
        reply: the judge's text; None where the question was too long to be asked.
        score: None where the reply has none.
    """

    item: int
    prompt_id: str
    answer: int
    sample: int
    reply: str | None
    score: float | None


class SampleRow(Prompt):
    """`samples.jsonl`: a policy's answer to a held-out prompt; `reward` is None where no judge is named."""

    sample: int
    response: str
    tokens: int
    finish_reason: str
    reward: float | None


class HeldoutRow(TypedDict):
    """`heldout.jsonl` of an evaluation: log-probs of a held-out pair's responses in nats."""

    prompt_id: str
    chosen_logp: float
    rejected_logp: float


class HeldoutRatioRow(TypedDict):
    """`heldout.jsonl` of an evaluation that reads both models: log-ratios against pi_init in nats.

    Attributes:
        standard_error: of their difference.
    """

    prompt_id: str
    chosen_log_ratio: float
    rejected_log_ratio: float
    standard_error: float


class AnswerRow(Prompt):
    """`answers.jsonl`: a model's answer to a prompt of a pairwise comparison."""

    response: str
    tokens: int


class TwoAnswersRow(Prompt):
    """`all.jsonl` and `pairs.jsonl` of two models: their answers, the evaluated model's first."""

    responses: list[str]
    tokens: list[int]


class OutcomeRow(TwoAnswersRow):
    """`outcomes.jsonl`: who won. 1 is the evaluated model, 0 the other one, one half a tie.

    Attributes:
        orders: the outcome when the model's answer stood first, and when it stood second.
        outcome: their mean.
    """

    orders: list[float]
    outcome: float
