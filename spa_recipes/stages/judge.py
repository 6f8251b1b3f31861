"""Labels: which of a prompt's answers is preferred, and how surely. One rule for every kind of judge.

The rewards of the answers are the implicit reward (the method), or what it is compared with: those of a reward model,
of the verdicts of a language model, the sandbox's gold reward, or a coin.
A seeded rule breaks ties. Dropped and counted are prompts whose best and worst answers are the same text, and prompts
with an empty answer unless two distinct non-empty answers remain.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from spa_recipes.algo.consistency import consistency, kendall_tau
from spa_recipes.algo.judgment import largest_margins, select_pair
from spa_recipes.algo.noise import flip_probability, is_inside
from spa_recipes.data import tables
from spa_recipes.data.arrow import rows_of
from spa_recipes.data.rows import RowsInOrder, iterate_rows, write_jsonl
from spa_recipes.data.stage_rows import JudgedPairRow, JudgmentRow, LabelledPrompt
from spa_recipes.errors import DataError, StageError
from spa_recipes.stages.common import mean, share
from spa_recipes.stages.context import Context, Result
from spa_recipes.stages.generate import is_empty
from spa_recipes.stages.judge_rewards import REWARDS, Answer, Judged, earlier_rewards, gold_rewards, length_penalty
from spa_recipes.stages.member_tables import ensemble_of, log_ratios_of, read_members
from spa_recipes.stages.peer_review import PeerReview

WARN_ABOVE = 0.1
"""Share of the margins within two standard errors of zero above which the stage warns."""

_SAME, _EMPTY, _UNCERTAIN = "same", "empty", "uncertain"
"""Why a prompt is dropped: its best and worst answers are the same text, empty, or too near each other."""

_READ = pa.schema([tables.COMPLETIONS.field(name) for name in ("item", "sample", "text", "response_ids", "logps")])
"""What the stage needs of the completions; the prompts' tokens, which each answer repeats, are not read."""


def run(context: Context) -> Result:
    """Write `pairs.jsonl` (TRL's explicit form) and `judgments.jsonl` (everything known about each prompt).

    Both are written row by row: of the texts, those of a few prompts are in memory at a time.
    """
    settings = context.spec.settings
    given = _Given(context)
    dropped: Counter[str] = Counter()
    penalty = length_penalty(settings["judge"], given.candidates)
    path = context.draft / "judgments.jsonl"
    margins = array("d")
    review = PeerReview(settings["forget_rate"]) if "forget_rate" in settings else None

    def judged() -> Iterator[JudgmentRow]:
        for judgment in _judgments(given, settings, penalty, dropped, review):
            margins.append(judgment["margin"])
            yield judgment

    write_jsonl(path, judged())
    if not margins:
        raise _no_pairs(context, dropped)
    keep = settings["judge"].get("keep", 1.0)
    kept = largest_margins(margins, keep) if review is None else review.chosen()
    if small := len(margins) - len(kept):
        wanted = set(kept)
        write_jsonl(path, (row for i, row in enumerate(iterate_rows(path, JudgmentRow)) if i in wanted))
    figures = _Figures()
    write_jsonl(context.draft / "pairs.jsonl", _pairs(given, path, settings, figures))
    metrics = {"dropped_identical": dropped[_SAME], "dropped_empty": dropped[_EMPTY], "length_penalty": penalty}
    if settings["judge"].get("min_margin_in_noise") is not None:
        metrics["dropped_uncertain"] = dropped[_UNCERTAIN]
    if review is not None:
        metrics |= review.metrics(kept)
    elif small:
        metrics["dropped_small_margin"] = small
    metrics |= figures.metrics(in_tokens=given.in_tokens)
    metrics |= _divergence(context, given)
    if any(name.endswith("log_ratios") for name in context.spec.inputs):
        metrics |= _noise(context, figures)
    return Result(len(kept), 0, metrics)


def _judgments(
    given: _Given, settings: dict[str, Any], penalty: float, dropped: Counter[str], review: PeerReview | None
) -> Iterator[JudgmentRow]:
    """The judgment of each prompt that has one, which a peer may review; the others are counted by their reason."""
    least = settings["judge"].get("min_margin_in_noise")
    for prompt, answers in given.prompts():
        if not _has_candidates(answers):
            dropped[_EMPTY] += 1
            continue
        key = f"{settings['seed']}:{settings['iteration']}:{prompt['prompt_id']}"
        asked = Judged(settings["judge"], prompt, answers, key, penalty)
        judgment = _judge(asked, gold_audit=settings["gold_audit"])
        if answers[judgment["chosen"]].text == answers[judgment["rejected"]].text:
            dropped[_SAME] += 1
        elif least is not None and is_inside(judgment["margin"], judgment["standard_error"], least):
            dropped[_UNCERTAIN] += 1
        else:
            if review is not None:
                review.note(judgment, asked)
            yield judgment


def _pairs(given: _Given, judgments: Path, settings: dict[str, Any], figures: _Figures) -> Iterator[JudgedPairRow]:
    """The pair of each judgment in a file; their figures are noted."""
    prompts = given.prompts()
    for judgment in iterate_rows(judgments, JudgmentRow):
        prompt, answers = next(both for both in prompts if both[1][0].item == judgment["item"])
        figures.note(judgment, answers)
        yield _pair(judgment, prompt, answers, settings)


def _candidates(answers: Sequence[Answer]) -> list[int]:
    """The answers that can make the pair: not the empty ones, as beating one teaches nothing."""
    return [k for k, answer in enumerate(answers) if not is_empty(answer.text)]


def _has_candidates(answers: Sequence[Answer]) -> bool:
    """Whether no answer is empty, or two distinct non-empty ones remain."""
    candidates = _candidates(answers)
    return len(candidates) == len(answers) or len({answers[k].text for k in candidates}) > 1


def _no_pairs(context: Context, dropped: Counter[str]) -> DataError:
    """The error for a stage that can label nothing, after so many prompts were dropped."""
    identical, empty = dropped[_SAME], dropped[_EMPTY]
    if dropped[_UNCERTAIN]:
        return DataError(
            f"every margin is smaller than judge.min_margin_in_noise allows ({dropped[_UNCERTAIN]} prompts)",
            where=context.spec.id,
            fix="lower it, or look at the log-ratios' method",
        )
    what = "every prompt's answers are the same text" if identical else "every prompt has empty answers"
    return DataError(
        f"{what} ({identical} prompts with the same answers, {empty} with empty ones)",
        where=context.spec.id,
        fix="raise sampling.temperature" if context.spec.settings["iteration"] else "give answers that differ",
    )


class _Given:
    """The prompts of the stage with their answers, and what the tables of its inputs say about each answer.

    Attributes:
        in_tokens: whether the answers have tokens; otherwise only texts are judged.
    """

    def __init__(self, context: Context) -> None:
        self._path = context.input("prompts")
        completions = tables.read_table(context.input("completions"), _READ)
        inputs = context.spec.inputs

        def column(name: str, schema: Any) -> list[float] | None:
            return tables.read_values(context.input(name), completions, schema) if name in inputs else None

        self._policy, self._reference = column("policy_logps", tables.LOGPS), column("reference_logps", tables.LOGPS)
        self._judging, self._seed = column("judging_logps", tables.LOGPS), column("seed_logps", tables.LOGPS)
        self._rewards = column("rewards", tables.REWARDS)
        self._ratios = [
            tables.read_log_ratios(context.input(name), completions)
            for name in ("log_ratios", "seed_log_ratios")
            if name in inputs
        ]
        self._common = None
        if context.spec.settings.get("labels_by") == "members":
            members = read_members(context, completions, self._reference)
            self._common = ensemble_of(members, context.spec.settings["judge"].get("uncertainty_penalty", 0.0))
        self._earlier = log_ratios_of("earlier", context, completions, self._reference)
        self._peer = log_ratios_of("peer", context, completions, self._reference)
        tokens = pc.list_value_length(completions["response_ids"])
        self.in_tokens = bool(pc.any(pc.greater(tokens, 0)).as_py())
        place = completions.schema.get_field_index("response_ids")
        self._completions = completions.set_column(place, "tokens", tokens)

    def prompts(self) -> Iterator[tuple[LabelledPrompt, list[Answer]]]:
        """Each prompt that has answers, with them.

        Raises:
            DataError: the answers are not in the order of the prompts.
        """
        prompts = RowsInOrder(self._path, LabelledPrompt)
        for item, answers in groupby(self._answers(), key=lambda answer: answer.item):
            yield prompts[item], list(answers)

    def candidates(self) -> Iterator[list[Answer]]:
        """Of each prompt that can get a label, the answers that can make the pair."""
        for _, answers in self.prompts():
            if _has_candidates(answers):
                yield [answers[k] for k in _candidates(answers)]

    def _answers(self) -> Iterator[Answer]:
        for i, row in enumerate(rows_of(self._completions)):
            sampled = None if row["logps"] is None else sum(row["logps"])
            ours = sampled if self._policy is None else self._policy[i]
            theirs = None if self._reference is None else self._reference[i]
            reward = None if self._rewards is None else self._rewards[i]
            log_ratio, error = self._log_ratio(i, ours, theirs)
            before, peer = (None if table is None else table.values[i] for table in (self._earlier, self._peer))
            known = (ours, theirs, reward, log_ratio, error, before, peer)
            yield Answer(row["item"], row["sample"], row["text"], row["tokens"], *known)

    def _log_ratio(self, i: int, ours: float | None, theirs: float | None) -> tuple[float | None, float | None]:
        """The log-ratio of an answer and its standard error, where the tables give them."""
        if self._common is not None:
            return self._common.values[i], self._common.errors[i] if self._common.errors else None
        if self._ratios:
            error = math.hypot(*(table.errors[i] for table in self._ratios)) / len(self._ratios)
            return mean([table.values[i] for table in self._ratios]), error
        judges = ours if self._judging is None else self._judging[i]
        if theirs is None or judges is None:
            return None, None
        # The mean of two rewards with one reference is that of the mean log-prob.
        return (judges if self._seed is None else (judges + self._seed[i]) / 2) - theirs, None


def _judge(asked: Judged, *, gold_audit: bool) -> JudgmentRow:
    """Rewards of the answers and the pair that follows from them."""
    judge, prompt, answers = asked.judge, asked.prompt, asked.answers
    gold = gold_rewards(prompt, answers) if gold_audit else None
    rewards = REWARDS[judge["type"]](asked)
    candidates = _candidates(answers)
    try:
        choice = select_pair(rewards[candidates], asked.key)
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
    if judge.get("consistency"):
        before = earlier_rewards(asked)
        judgment["rank_agreement"] = kendall_tau(*(found[candidates].tolist() for found in (before, rewards)))
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


def _divergence(context: Context, given: _Given) -> dict[str, Any]:
    """KL(pi_{i-1} || pi_init) in nats per answer, by the answers that it sampled; nothing where other models judge."""
    judge, inputs = context.spec.settings["judge"], context.spec.inputs
    own = judge["type"] == "implicit_reward" and judge.get("policy", "previous") == "previous"
    to_init = own and judge.get("reference", "init") == "init"
    others = any(name.startswith(("judging_", "seed_", "member")) for name in inputs)
    if not context.spec.settings["iteration"] or not to_init or others:  # a job's models need not be these
        return {}
    answers = (answer for _, answers in given.prompts() for answer in answers)
    known = array("d", (answer.log_ratio for answer in answers if answer.log_ratio is not None))
    return {"sampled_kl_to_init": mean(known)} if known else {}


def _noise(context: Context, figures: _Figures) -> dict[str, Any]:
    """What the precision of the log-ratios does to the labels, with a warning in words where it is much."""
    # Of the model that judges; of several, all were read alike.
    named = [name for name in context.spec.inputs if name.endswith("log_ratios")]
    name = "log_ratios" if "log_ratios" in named else named[0]
    choice = tables.log_ratios_choice(context.input(name))
    margins = list(zip(figures.margins, figures.errors, strict=True))
    inside = share([is_inside(*margin) for margin in margins])
    changed = mean([flip_probability(*margin) for margin in margins])
    metrics = {
        "method": choice["method"],
        "standard_error": mean(figures.errors),
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


class _Figures:
    """What is known of the pairs, in numbers, in their order.

    Attributes:
        margins, errors: of the labels, and their standard errors where these were measured.
    """

    def __init__(self) -> None:
        self.margins, self.errors = array("d"), array("d")
        self._sure, self._gold = array("d"), array("d")
        self._tokens: tuple[array[int], array[int]] = (array("q"), array("q"))
        self._characters: tuple[array[int], array[int]] = (array("q"), array("q"))
        self._ties = 0
        self._taus = array("d")
        self._agrees: list[bool] = []

    def note(self, judgment: JudgmentRow, answers: Sequence[Answer]) -> None:
        """Note a pair."""
        chosen, rejected = judgment["chosen"], judgment["rejected"]
        self.margins.append(judgment["margin"])
        self._sure.append(judgment["p_chosen"])
        self._ties += judgment["tied"]
        if "standard_error" in judgment:
            self.errors.append(judgment["standard_error"])
        for k, tokens, characters in zip((chosen, rejected), self._tokens, self._characters, strict=True):
            tokens.append(answers[k].tokens)
            characters.append(len(answers[k].text))
        if judgment["gold"]:
            self._gold.append(judgment["gold"][chosen] - judgment["gold"][rejected])
        if "rank_agreement" in judgment:
            self._taus.append(judgment["rank_agreement"])
        if judgment["label"] is not None:
            self._agrees.append(chosen == judgment["label"])

    def metrics(self, *, in_tokens: bool) -> dict[str, Any]:
        """The figures of all pairs; lengths are in tokens, or in characters where only texts are judged."""
        metrics: dict[str, Any] = {
            "mean_margin": mean(self.margins),
            "mean_p_chosen": mean(self._sure),
            "ties": self._ties,
        }
        if in_tokens:
            chosen, rejected = map(mean, self._tokens)
            metrics |= {"chosen_tokens": chosen, "rejected_tokens": rejected, "length_gap": chosen - rejected}
        else:
            chosen, rejected = map(mean, self._characters)
            metrics["length_gap_characters"] = chosen - rejected
        if decided := [gap > 0 for gap in self._gold if gap != 0]:
            metrics["accuracy_vs_gold"] = share(decided)
        if self._agrees:
            metrics |= {"agreement_with_labels": share(self._agrees), "labelled": len(self._agrees)}
        if self._taus:
            metrics["consistency"] = consistency(self._taus)
        return metrics
