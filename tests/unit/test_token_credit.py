"""Token credit (TGDPO): against plain loops, by its properties, in the trainer, the stages and the plan."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from spa_recipes.algo.credit import normalised, token_rewards, token_weights
from spa_recipes.data.tables import COMPLETIONS, LOGPS, read_token_logps, read_values, write_token_logps
from spa_recipes.errors import DataError
from spa_recipes.generation.scoring import Scored, sequence_logps, token_logps
from spa_recipes.recipe.schema import FixedThreshold, TokenCredit
from spa_recipes.stages.token_credit import credit_of
from spa_recipes.training.env import METHODS_LOSS, PairLoss, Refinement
from spa_recipes.training.preference import NoiseDetector
from tests.kit import reference_math as plain
from tests.kit.plans import plan_of
from tests.kit.training import loss_of, make_model, make_pairs, trainer_of

BETA, A = 0.2, 0.5
CREDIT: dict[str, Any] = {"refine": {"token_credit": {"type": "tgdpo"}}}


# --- the equation


def test_rewards_of_tokens_sum_up_to_the_reward_of_the_response() -> None:
    rewards = token_rewards([-1.0, -2.5, -0.5], [-1.5, -2.0, -3.0], BETA)
    assert rewards == pytest.approx([0.1, -0.1, 0.5])
    assert sum(rewards) == pytest.approx(BETA * (-4.0 - -6.5))
    with pytest.raises(ValueError, match="zip"):
        token_rewards([-1.0], [-1.0, -2.0], BETA)


def test_the_normalisations() -> None:
    rewards = [[0.2, -0.4], [1.0, 0.0, -0.8], [0.0]]
    assert normalised(rewards, "none") == rewards
    assert normalised(rewards, "max") == [[0.5, -1.0], [1.0, 0.0, -0.8], [0.0]]
    values = [0.2, -0.4, 1.0, 0.0, -0.8, 0.0]
    sd = (sum((v - sum(values) / 6) ** 2 for v in values) / 6) ** 0.5
    assert normalised(rewards, "sd")[1] == pytest.approx([1.0 / sd, 0.0, -0.8 / sd])
    assert normalised([[0.0, 0.0]], "sd") == [[0.0, 0.0]]
    with pytest.raises(ValueError, match="no normalisation 'mean'"):
        normalised(rewards, "mean")


def test_without_a_every_token_counts_once_and_with_max_and_a_up_to_1_none_negatively() -> None:
    assert token_weights([0.3, -7.0], 0.0, chosen=True) == token_weights([0.3, -7.0], 0.0, chosen=False) == [1.0, 1.0]
    for chosen in (True, False):
        assert min(token_weights(normalised([[9.0, -9.0, 1.0]], "max")[0], 1.0, chosen=chosen)) == 0.0


# --- in the trainer


class Rows:
    """Pairs with rewards of their tokens, a reference of its own, and what plain loops say of them."""

    def __init__(self, policy: Path, reference: Path, rhat: float | None = None) -> None:
        self.rows = make_pairs(6, reference=False)
        models = [AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64) for path in (policy, reference)]
        self.tokens: list[list[list[tuple[float, float, float]]]] = []
        for n, row in enumerate(self.rows):
            of_row = []
            for side in ("chosen_ids", "rejected_ids"):
                both = [self._logps(model, row["prompt_ids"], row[side]) for model in models]
                rhats = [0.3 * (-1) ** (n + t) * t if rhat is None else rhat for t in range(len(row[side]))]
                of_row.append([*zip(*both, rhats, strict=True)])
            self.tokens.append(of_row)

    @staticmethod
    def _logps(model: Any, prompt: list[int], response: list[int]) -> list[float]:
        ids = prompt + response
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].tolist()
        return [plain.token_logp(logits, ids, place) for place in range(len(prompt), len(ids))]

    def weights(self, a: float) -> list[tuple[list[float], list[float]]]:
        rhats = [[[rhat for _, _, rhat in side] for side in row] for row in self.tokens]
        return [(token_weights(w, a, chosen=True), token_weights(r, a, chosen=False)) for w, r in rhats]

    def given(self, a: float) -> list[dict[str, Any]]:
        """The rows with the reference's log-probs, summed with the weights."""
        names = ("ref_chosen_logps", "ref_rejected_logps")
        return [
            row
            | {
                name: sum(weight * ref for weight, (_, ref, _) in zip(weights, tokens, strict=True))
                for name, weights, tokens in zip(names, of_row, self.tokens[n], strict=True)
            }
            for n, (row, of_row) in enumerate(zip(self.rows, self.weights(a), strict=True))
        ]

    def margins(self, a: float, beta: float = BETA) -> list[float]:
        return [plain.tgdpo_margin(beta, a, *row) for row in self.tokens]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("reference") / "model", seed=1)


@pytest.mark.parametrize("kind", ["sigmoid", "ipo"])
def test_the_trainers_loss_is_that_of_plain_loops(policy: Path, other: Path, tmp_path: Path, kind: Any) -> None:
    data, weight = Rows(policy, other), 0.3
    slow = sum(plain.pair_loss(kind, m, BETA, 0.0) for m in data.margins(A)) / 6
    for row, (chosen, _) in zip(data.rows, data.tokens, strict=True):  # the cloning term weighs no tokens
        slow += weight * -sum(logp for logp, _, _ in chosen) / len(row["chosen_ids"]) / 6
    loss = PairLoss(kind, sft_weight=weight, token_weights=data.weights(A))
    trainer = trainer_of(policy, tmp_path, data.given(A), loss, beta=BETA)
    for cut in (6, 2):
        assert loss_of(trainer, data.given(A), cut) == pytest.approx(slow, rel=2e-5)


def test_a_live_reference_and_the_decoupled_detection_weigh_tokens_too(
    policy: Path, other: Path, tmp_path: Path
) -> None:
    data, lam = Rows(policy, other), 0.5
    slow = sum(plain.pair_loss("sigmoid", m, BETA, 0.0) for m in data.margins(A)) / 6
    refinement = Refinement(0.0, lam, FixedThreshold(type="fixed", tau=0.5), warmup_ratio=0.0)  # alpha = 0
    reference = AutoModelForCausalLM.from_pretrained(other, dtype=torch.float32)
    detector = NoiseDetector(refinement, warmup_steps=0)
    loss = PairLoss(token_weights=data.weights(A))
    trainer = trainer_of(policy, tmp_path, data.rows, loss, beta=BETA, ref_model=reference, detector=detector)
    assert loss_of(trainer, data.rows, 6) == pytest.approx(slow, rel=2e-5)
    (seen,) = trainer._seen
    assert seen.margin.tolist() == pytest.approx(data.margins(A), rel=1e-4, abs=1e-5)
    decoupled = []
    models = [AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64) for path in (policy, other)]
    for row, tokens, weights in zip(data.rows, data.tokens, data.weights(A), strict=True):
        margin = 0.0
        for sign, side, of_side, weight in zip((1, -1), ("chosen_ids", "rejected_ids"), tokens, weights, strict=True):
            ids, start = row["prompt_ids"] + row[side], len(row["prompt_ids"])
            with torch.no_grad():
                ours, theirs = (model(torch.tensor([ids])).logits[0].tolist() for model in models)
            mixed = plain.decoupled_logits(ours, theirs, lam)
            for t, ((_, ref, _), w) in enumerate(zip(of_side, weight, strict=True)):
                margin += sign * BETA * w * (plain.token_logp(mixed, ids, start + t) - ref)
        decoupled.append(plain.sigmoid(margin))
    assert seen.p_detect.tolist() == pytest.approx(decoupled, rel=1e-3, abs=1e-5)
    plain_trainer = trainer_of(policy, tmp_path, data.rows, loss, beta=BETA, ref_model=reference)
    assert loss_of(plain_trainer, data.rows, 2) == pytest.approx(slow, rel=2e-5)


def test_without_a_it_is_dpo_exactly(policy: Path, other: Path, tmp_path: Path) -> None:
    data = Rows(policy, other)
    rows = data.given(0.0)
    dpo, weighed = (
        loss_of(trainer_of(policy, tmp_path, rows, loss, beta=BETA), rows, 6)
        for loss in (METHODS_LOSS, PairLoss(token_weights=data.weights(0.0)))
    )
    assert weighed == dpo


def test_a_constant_reward_gives_dpo_with_another_beta_for_each_side(policy: Path, other: Path, tmp_path: Path) -> None:
    c = 0.4
    data = Rows(policy, other, rhat=c)
    trainer = trainer_of(policy, tmp_path, data.given(A), PairLoss(token_weights=data.weights(A)), beta=BETA)
    loss_of(trainer, data.given(A), 6)
    expected = [
        BETA * (1 + A * c) * sum(p - r for p, r, _ in chosen) - BETA * (1 - A * c) * sum(p - r for p, r, _ in rejected)
        for chosen, rejected in data.tokens
    ]
    assert trainer._seen[0].margin.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)


# --- in the stages


def test_scoring_keeps_the_log_probs_of_tokens(policy: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32).eval()
    exact = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float64)
    rows = make_pairs(5)
    items = [Scored(row["prompt_ids"], row[side]) for row in rows for side in ("chosen_ids", "rejected_ids")]
    for most in (4096, 12):  # all in one pass, and a few at a time
        found = token_logps(model, items, tokens_per_batch=most)
        for item, logps in zip(items, found, strict=True):
            assert logps == pytest.approx(Rows._logps(exact, item.prompt_ids, item.response_ids), abs=1e-4)
        sums = sequence_logps(model, items, tokens_per_batch=most)
        assert [sum(logps) for logps in found] == pytest.approx(sums, rel=1e-6)


def completions(logps: list[list[float] | None]) -> pa.Table:
    rows = [
        {
            "item": n // 2, "prompt_id": f"p{n // 2}", "sample": n % 2, "prompt_ids": [1],
            "response_ids": [7] * len(of_answer or [0]), "text": "a", "logps": of_answer, "finish_reason": "stop",
        }
        for n, of_answer in enumerate(logps)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=COMPLETIONS)


def test_the_stage_weighs_the_tokens_of_its_pairs(tmp_path: Path) -> None:
    kept = [[-1.0, -2.0], [-0.5], [-3.0], [-1.0, -1.0, -4.0]]
    init = [[-1.5, -1.0], [-0.25], [-3.5], [-2.0, -1.0, -3.5]]
    table, path = completions([*kept]), tmp_path / "logps.parquet"
    write_token_logps(path, table, init)
    assert read_token_logps(path, table) == init
    assert read_values(path, table, LOGPS) == [-2.5, -0.25, -3.5, -6.5]  # what the judge reads of the same file
    judgments: list[Any] = [
        {"item": 0, "chosen": 1, "rejected": 0, "rewards": [0.0, 1.0]},
        {"item": 1, "chosen": 0, "rejected": 1, "rewards": [1.0, 0.0]},
    ]
    place = {(n // 2, n % 2): n for n in range(4)}
    settings = TokenCredit(type="tgdpo", a=A, normalise="none")
    credit = credit_of(settings, BETA, judgments, table, place, path)
    assert credit.weights[0][0] == pytest.approx([1 + A * BETA * (-0.5 + 0.25)])
    assert credit.weights[0][1] == pytest.approx([1 - A * BETA * 0.5, 1 - A * BETA * -1.0])
    assert credit.reference_logps[1][0] == pytest.approx(credit.weights[1][0][0] * -3.0)
    nothing = credit_of(TokenCredit(type="tgdpo", a=0.0), BETA, judgments, table, place, path)
    assert nothing.reference_logps == [[-3.0, -0.5], [-3.0, -6.0]]


def test_an_answer_without_log_probs_is_refused(tmp_path: Path) -> None:
    table, path = completions([[-1.0], None]), tmp_path / "logps.parquet"
    write_token_logps(path, table, [[-1.0], [-2.0]])
    judgments: list[Any] = [{"item": 0, "chosen": 0, "rejected": 1, "rewards": [1.0, 0.0]}]
    with pytest.raises(DataError, match="answer 1 has no log-prob of each token"):
        credit_of(TokenCredit(type="tgdpo"), BETA, judgments, table, {(0, 0): 0, (0, 1): 1}, path)


# --- in the plan


def test_the_plan_says_it_and_scores_nothing_twice() -> None:
    plan, before = plan_of(**CREDIT), plan_of()
    assert plan.stage("refine-1").role.endswith(", tokens weighed by tgdpo (a = 0.5, normalise max)")
    assert str(plan.stage("refine-1").inputs["token_logps"]) == "score-1-reference/logps.parquet"
    assert str(plan.stage("judge-1").inputs["reference_logps"]) == "score-1-reference/logps.parquet"
    assert [stage.id for stage in plan.stages] == [stage.id for stage in before.stages]
    assert plan.stage("generate-1").key == before.stage("generate-1").key


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"refine": {"loss": "sppo"}, "noise": {"enabled": False}}, "loss sppo has no margin"),
        ({"refine": {"divergence": "chi_squared"}}, "divergence chi_squared is of whole responses"),
        ({"refine": {"reference_mix": 0.5}, "noise": {"lambdas": [0.0, 0.0]}}, "a mixed reference is known of whole"),
        ({"refine": {"seed_replay": 0.5}}, "replayed seed pairs have no rewards of tokens"),
        ({"judge": {"type": "gold"}}, "refine.token_credit: needs log-probs of the tokens under pi_init"),
        ({"judge": {"policy": "seed"}}, "refine.token_credit: needs log-probs of the tokens under pi_init"),
        ({"judge": {"method": "tangent"}}, "with judge.method log-ratios of whole answers are computed"),
        ({"judge": {"min_margin_in_noise": 2.0}}, "with judge.min_margin_in_noise log-ratios of whole answers"),
        ({"model": {"dtype": "bfloat16"}}, "of which rounding leaves nothing in half precision"),
        (
            {"data": {"added": [{"source": "l.jsonl", "after": 1}]}},
            "data.added.0: refine.token_credit reads answers that were sampled",
        ),
        ({"data": {"prompts_per_iteration": []}}, "refine.token_credit: has no effect without iterations"),
    ],
)
def test_what_it_does_not_go_with_is_refused(changes: dict[str, Any], words: str) -> None:
    refine = {**CREDIT["refine"], **changes.get("refine", {})}
    with pytest.raises(ValidationError, match="Value error") as raised:
        plan_of(**{**changes, "refine": refine})
    assert words in str(raised.value)
