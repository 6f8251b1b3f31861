"""The loss sppo: against plain loops, in the trainer with two and more answers, and the rows that a stage makes."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from datasets import Dataset
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from spa_recipes.algo.variants import sppo_loss, win_probabilities
from spa_recipes.data.tables import COMPLETIONS
from spa_recipes.estimates import needs
from spa_recipes.stages.all_answers import orders_of, sppo_targets, with_others
from spa_recipes.training.env import PairLoss
from spa_recipes.training.order import PADDING_ROW
from spa_recipes.training.pair_rows import longest_text, pair_lengths, pair_tokens, rows_of_answers
from tests.kit import reference_math as plain
from tests.kit.plans import plan_of
from tests.kit.training import loss_of, make_pairs, trainer_of

BETA = 0.2
SPPO: dict[str, Any] = {"refine": {"loss": "sppo"}, "noise": {"enabled": False}}


# --- the equation


@pytest.mark.parametrize("rewards", [[0.3, -0.2], [1.0, 0.5, 0.5, -2.0], [900.0, -900.0, 0.0]])
def test_win_probabilities_are_those_of_plain_loops_and_sum_to_half_of_all(rewards: list[float]) -> None:
    found = win_probabilities(rewards)
    assert found == pytest.approx(plain.win_probabilities(rewards), rel=1e-12)
    assert sum(found) == pytest.approx(len(rewards) / 2)


def test_the_loss_is_a_mean_over_the_answers_of_each_prompt() -> None:
    logps, before = [[-4.0, -7.0], [-3.0, -9.0, -5.5]], [[-4.5, -6.0], [-3.0, -8.0, -7.0]]
    wins = [plain.win_probabilities(rewards) for rewards in ([0.4, -0.1], [1.0, -1.0, 0.0])]
    slow = [plain.sppo_loss(*given, eta=1 / BETA) for given in zip(logps, before, wins, strict=True)]
    order = [(0, 0), (1, 0), (0, 1), (1, 1), (1, 2)]  # chosen, rejected, others
    log_ratio_A, target_A = (
        torch.tensor(values, dtype=torch.float64)
        for values in (
            [logps[b][k] - before[b][k] for b, k in order],
            [(wins[b][k] - 0.5) / BETA for b, k in order],
        )
    )
    row_A = rows_of_answers(torch.tensor([0, 1]))
    assert row_A.tolist() == [b for b, _ in order]
    assert sppo_loss(log_ratio_A, target_A, row_A).tolist() == pytest.approx(slow, rel=1e-12)
    assert sppo_loss(target_A, target_A, row_A).tolist() == [0.0, 0.0]  # the optimum


# --- in the trainer


def answers(count: int) -> list[dict[str, Any]]:
    """Rows with no, one and two answers besides the pair."""
    rows, more = make_pairs(count), make_pairs(count, seed=5)
    for n, (row, other) in enumerate(zip(rows, more, strict=True)):
        row["other_ids"] = [other["chosen_ids"], other["rejected_ids"]][: n % 3]
        row["ref_other_logps"] = [-11.0, -13.0][: n % 3]
    return rows


def sequences(row: dict[str, Any]) -> list[list[int]]:
    return [row["chosen_ids"], row["rejected_ids"], *row["other_ids"]]


def slow_logp(model: Any, prompt: list[int], response: list[int]) -> float:
    with torch.no_grad():
        logits = model(torch.tensor([prompt + response])).logits[0].tolist()
    return plain.sequence_logp(logits, prompt + response, [0] * len(prompt) + [1] * len(response))


@pytest.mark.parametrize("sft_weight", [0.0, 0.3])
def test_the_trainers_loss_is_that_of_plain_loops(policy: Path, tmp_path: Path, sft_weight: float) -> None:
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float64)
    rows = answers(6)
    rewards = [[0.5 * k - 0.1 * n for k in range(len(sequences(row)))] for n, row in enumerate(rows)]
    wins = [plain.win_probabilities(values) for values in rewards]
    slow = 0.0
    for row, p in zip(rows, wins, strict=True):
        logps = [slow_logp(model, row["prompt_ids"], answer) for answer in sequences(row)]
        before = [row["ref_chosen_logps"], row["ref_rejected_logps"], *row["ref_other_logps"]]
        slow += plain.sppo_loss(logps, before, p, eta=1 / BETA) / 6
        slow += sft_weight * -logps[0] / len(row["chosen_ids"]) / 6
    loss = PairLoss("sppo", sft_weight=sft_weight, targets=[[(w - 0.5) / BETA for w in p] for p in wins])
    trainer = trainer_of(policy, tmp_path, rows, loss, beta=BETA)
    padded = [*rows, {**rows[2], "row": PADDING_ROW}]  # which does not count
    for given in (rows, padded):
        for cut in (6, 2):
            assert loss_of(trainer, given, cut) == pytest.approx(slow, rel=2e-5)


def test_lengths_and_tokens_are_those_of_all_answers() -> None:
    rows = answers(5)
    table = Dataset.from_list(rows)
    lengths = [[len(row["prompt_ids"]) + len(answer) for answer in sequences(row)] for row in rows]
    assert pair_lengths(table) == [max(of_row) for of_row in lengths]
    assert pair_lengths(table, min) == [min(of_row) for of_row in lengths]
    assert pair_tokens(table) == sum(map(sum, lengths))
    assert len(longest_text(table)) == max(map(max, lengths))


# --- in the stage


def completions(texts: list[list[str]]) -> pa.Table:
    rows = [
        {
            "item": item, "prompt_id": f"p{item}", "sample": k, "prompt_ids": [1],
            "response_ids": [10 * item + k] * (k + 1), "text": text, "logps": None, "finish_reason": "stop",
        }
        for item, of_item in enumerate(texts)
        for k, text in enumerate(of_item)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=COMPLETIONS)


def test_a_row_has_the_pair_then_the_others_without_the_empty_ones() -> None:
    table = completions([["a", "b", " ", "d"], ["e", "f"]])
    place = {(item, k): n for n, (item, k) in enumerate((i, k) for i, count in ((0, 4), (1, 2)) for k in range(count))}
    judgments: list[Any] = [
        {"item": 0, "chosen": 3, "rejected": 0, "rewards": [-1.0, 0.2, 9.0, 1.0]},
        {"item": 1, "chosen": 0, "rejected": 1, "rewards": [0.75, 0.25]},
    ]
    orders = orders_of(judgments, table, place)
    assert orders == [[3, 0, 1], [0, 1]]
    judged = pa.table({"prompt_ids": [[1], [1]]})
    rows = with_others(judged, judgments, orders, table, place, [[-1.0, -2.0, -3.0, -4.0], [-5.0, -6.0]]).to_pylist()
    assert [(row["other_ids"], row["ref_other_logps"]) for row in rows] == [([[1, 1]], [-2.0]), ([], [])]
    wins = plain.win_probabilities([1.0, -1.0, 0.2])
    first, second = sppo_targets(judgments, orders, BETA, win_shares=False)
    assert first == pytest.approx([(p - 0.5) / BETA for p in wins])
    assert sum(second) == pytest.approx(0.0)
    _, shares = sppo_targets(judgments, orders, BETA, win_shares=True)
    assert shares == pytest.approx([0.25 / BETA, -0.25 / BETA])


# --- in the plan


def test_the_plan_says_it_and_counts_all_answers() -> None:
    plan, pairs = plan_of(**SPPO, sampling={"n": 5}), plan_of(noise={"enabled": False}, sampling={"n": 5})
    assert plan.stage("refine-1").role.endswith(", loss sppo on all 5 answers")
    all_answers, two = (needs(each.stage("refine-1"), each).tokens or 0 for each in (plan, pairs))
    assert 2 * all_answers == 5 * two > 0
    assert plan.stage("judge-1").key == pairs.stage("judge-1").key
    assert "win_shares" not in plan.stage("refine-1").settings
    by_llm = {"type": "llm", "endpoint": {"base_url": "http://localhost/v1", "model": "m", "api_key_env": None}}
    assert plan_of(**SPPO, judge=by_llm).stage("refine-1").settings["win_shares"] is True
    single = plan_of(**SPPO, judge={**by_llm, "mode": "single"})
    assert "win_shares" not in single.stage("refine-1").settings


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"noise": {"enabled": True}}, "refine.loss: sppo has no pairs whose labels could be doubted"),
        ({"data": {"added": [{"source": "l.jsonl", "after": 1}]}}, "data.added.0: refine.loss reads answers that were"),
        ({"refine": {"loss": "sppo", "seed_replay": 0.5}}, "replayed seed pairs are not sampled"),
        (
            {"refine": {"loss": "sppo", "divergence": "chi_squared"}},
            "divergence: chi_squared changes the margin",
        ),
        ({"refine": {"loss": "sppo", "reference_mix": 0.5}}, "which does not cancel in the log-ratios of loss sppo"),
    ],
)
def test_what_it_does_not_go_with_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match="Value error") as raised:
        plan_of(**{**SPPO, **changes})
    assert words in str(raised.value)
