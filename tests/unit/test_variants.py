"""Losses and divergences beside the method's: each against plain loops, and by the properties that define it."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from spa_recipes.algo.refine import dpo_loss, dpo_margin, refined_loss
from spa_recipes.algo.variants import divergence_margin, pair_loss, sft_loss
from spa_recipes.errors import DataError, StageError
from spa_recipes.recipe.schema import FixedThreshold, RefineTraining
from spa_recipes.stages import refine
from spa_recipes.training.env import PairLoss, Refinement, Start
from spa_recipes.training.preference import NoiseDetector
from spa_recipes.training.run import train_preference
from tests.kit import reference_math as plain
from tests.kit.plans import plan_of
from tests.kit.training import loss_of, make_env, make_pairs, preference, same_weights, trainer_of

MARGINS = [-40.0, -3.0, -0.1, 0.0, 0.2, 2.5, 60.0]
KINDS = ["sigmoid", "ipo", "distill"]
BETA = 0.2


def doubles(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


# --- losses of a margin


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_their_slopes(kind: str) -> None:
    judged = [0.1 * n for n in range(len(MARGINS))]
    margin_B = doubles(MARGINS)
    loss_B = pair_loss(margin_B, kind, BETA, doubles(judged).detach())
    (slope_B,) = torch.autograd.grad(loss_B.sum(), margin_B)
    assert loss_B.tolist() == pytest.approx(
        [plain.pair_loss(kind, m, BETA, r) for m, r in zip(MARGINS, judged, strict=True)], rel=1e-12
    )
    step = 1e-5
    slopes = [
        (plain.pair_loss(kind, m + step, BETA, r) - plain.pair_loss(kind, m - step, BETA, r)) / (2 * step)
        for m, r in zip(MARGINS, judged, strict=True)
    ]
    assert slope_B.tolist() == pytest.approx(slopes, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_flagged_pair_learns_from_both_labels(kind: str) -> None:
    margin_B, judged_B = doubles(MARGINS), doubles([0.7] * len(MARGINS)).detach()
    loss_B = refined_loss(margin_B, torch.ones_like(margin_B), 0.3, lambda m: pair_loss(m, kind, BETA, judged_B))
    both = [0.7 * plain.pair_loss(kind, m, BETA, 0.7) + 0.3 * plain.pair_loss(kind, -m, BETA, 0.7) for m in MARGINS]
    assert loss_B.tolist() == pytest.approx(both, rel=1e-12)


def test_ipo_wants_one_difference_of_log_ratios() -> None:
    """It is least, and 0, where the log-ratios differ by 1 / (2*beta), whatever the margin's sign was before."""
    h_B = doubles([1 / (2 * BETA)])
    assert pair_loss(BETA * h_B, "ipo", BETA, h_B).item() == pytest.approx(0.0, abs=1e-24)


def test_distillation_ends_at_the_square_of_the_policy_over_pi_init() -> None:
    """With equal betas the optimum has log pi - log pi_{i-1} = log pi_{i-1} - log pi_init, up to a constant."""
    init, previous = [-9.0, -7.0], [-6.0, -8.5]
    optimum = [2 * p - i for p, i in zip(previous, init, strict=True)]
    chosen, rejected, before_w, before_l = (doubles([value]) for value in (*optimum, *previous))
    judged = BETA * ((previous[0] - init[0]) - (previous[1] - init[1]))
    margin_B = dpo_margin(chosen, rejected, before_w, before_l, BETA)
    assert pair_loss(margin_B, "distill", BETA, doubles([judged])).item() == pytest.approx(0.0, abs=1e-24)


def test_an_unknown_loss_is_no_default() -> None:
    with pytest.raises(ValueError, match="no loss 'hinge'"):
        pair_loss(doubles([0.0]), "hinge", BETA, doubles([0.0]))


# --- divergences


def margins_of(divergence: str, values: list[list[float]]) -> torch.Tensor:
    chosen_B, rejected_B, reference_chosen_B, reference_rejected_B = (doubles(value) for value in values)
    return divergence_margin(chosen_B, rejected_B, reference_chosen_B, reference_rejected_B, BETA, divergence)


@pytest.mark.parametrize("divergence", ["reverse_kl", "chi_squared"])
def test_margins_of_the_divergences(divergence: str) -> None:
    values = [[-10.0, -11.0, -3.0], [-9.5, -12.0, -9.0], [-10.2, -12.0, -9.0], [-9.0, -11.9, -4.0]]
    slow = [plain.divergence_margin(BETA, y, ry, n, rn, divergence) for y, n, ry, rn in zip(*values, strict=True)]
    assert margins_of(divergence, values).tolist() == pytest.approx(slow, rel=1e-12)


def test_chi_squared_starts_as_dpo_with_twice_the_beta() -> None:
    chosen_B, rejected_B = doubles([-10.0, -4.0]), doubles([-12.0, -9.0])
    before = (chosen_B.detach(), rejected_B.detach())
    grads = []
    for margin_B in (
        divergence_margin(chosen_B, rejected_B, *before, BETA, "chi_squared"),
        dpo_margin(chosen_B, rejected_B, *before, 2 * BETA),
    ):
        loss = dpo_loss(margin_B).sum()
        grads.append([loss.detach(), *torch.autograd.grad(loss, (chosen_B, rejected_B))])
    for ours, theirs in zip(*grads, strict=True):
        assert torch.equal(ours, theirs)


def test_chi_squared_is_clipped_and_never_nan() -> None:
    for far in (30.0, 900.0):
        chosen_B, rejected_B = doubles([far, far, 0.0]), doubles([0.0, far, far])
        zero_B = torch.zeros(3, dtype=torch.float64)
        margin_B = divergence_margin(chosen_B, rejected_B, zero_B, zero_B, BETA, "chi_squared")
        assert margin_B.tolist() == [2.0, 0.0, -2.0]
        (slope_B,) = torch.autograd.grad(margin_B.sum(), chosen_B)
        assert slope_B.isfinite().all()
        assert slope_B[0] == slope_B[2] == 0.0


def test_the_behaviour_cloning_term_is_a_mean_per_pair() -> None:
    assert sft_loss(doubles([-6.0, -5.0]), torch.tensor([3, 1])).tolist() == [2.0, 5.0]


# --- in the trainer


def slow_logp(model: Any, prompt: list[int], response: list[int]) -> float:
    with torch.no_grad():
        logits = model(torch.tensor([prompt + response])).logits[0].tolist()
    return plain.sequence_logp(logits, prompt + response, [0] * len(prompt) + [1] * len(response))


@pytest.mark.parametrize(
    ("loss", "flags"),
    [
        (PairLoss("ipo", sft_weight=0.3), None),
        (PairLoss("distill", judge_margins=[0.1 * n for n in range(6)]), 0.5),
        (PairLoss("sigmoid", "chi_squared", 0.05), 0.5),
        (PairLoss("ipo"), 0.5),
        (PairLoss("sigmoid", consistency=0.7), None),
        (PairLoss("distill", judge_margins=[0.1 * n for n in range(6)], consistency=0.4), 0.5),
    ],
)
def test_the_trainers_loss_is_that_of_plain_loops(
    policy: Path, tmp_path: Path, loss: PairLoss, flags: float | None
) -> None:
    alpha = 0.25
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float64)
    rows = make_pairs(6)
    logps = [
        [slow_logp(model, row["prompt_ids"], row[side]) for side in ("chosen_ids", "rejected_ids")] for row in rows
    ]
    for n, (row, (chosen, rejected)) in enumerate(zip(rows, logps, strict=True)):  # a reference that is near
        row |= {"ref_chosen_logps": chosen - 0.4 * n + 1.0, "ref_rejected_logps": rejected - 0.5}
    slow = 0.0
    for n, (row, (chosen, rejected)) in enumerate(zip(rows, logps, strict=True)):
        given = (chosen, row["ref_chosen_logps"], rejected, row["ref_rejected_logps"])
        m = plain.divergence_margin(BETA, *given, loss.divergence)
        judged = loss.judge_margins[n] if loss.judge_margins else 0.0
        weight = alpha if flags is not None and plain.sigmoid(m) < flags else 0.0
        as_it_is, flipped = (
            loss.consistency * plain.pair_loss(loss.kind, sign * m, BETA, judged)
            + (1 - loss.consistency) * plain.pair_loss(loss.kind, -sign * m, BETA, judged)
            for sign in (1, -1)
        )
        slow += ((1 - weight) * as_it_is + weight * flipped) / 6
        slow += loss.sft_weight * -chosen / len(row["chosen_ids"]) / 6
    detector = None
    if flags is not None:
        threshold = FixedThreshold(type="fixed", tau=flags)
        detector = NoiseDetector(Refinement(alpha, 0.0, threshold, warmup_ratio=0.0), warmup_steps=0)
    trainer = trainer_of(policy, tmp_path, rows, loss, beta=BETA, detector=detector)
    for cut in (6, 2):
        assert loss_of(trainer, rows, cut) == pytest.approx(slow, rel=2e-5)
    assert math.isfinite(slow)
    if flags is not None:
        assert 0 < sum(pairs.flagged.sum() for pairs in trainer._seen) < 12


def test_a_loss_changes_what_is_trained(policy: Path, tmp_path: Path) -> None:
    rows = make_pairs(8)
    for name, loss in {"plain": PairLoss(), "sft": PairLoss(sft_weight=1.0)}.items():
        env = make_env(policy, tmp_path / name)
        settings = preference(num_train_epochs=3)
        train_preference(policy, rows, settings, env, reference_path=None, refinement=None, loss=loss)
    assert not same_weights(tmp_path / "plain" / "out", tmp_path / "sft" / "out", tolerance=1e-3)


# --- the mixed reference


def judgment(policy: list[float], init: list[float], **more: Any) -> Any:
    return {"chosen": 1, "rejected": 0, "policy_logps": policy, "reference_logps": init, "margin": 9.0, **more}


@pytest.mark.parametrize("kappa", [0.0, 0.3, 1.0])
def test_a_mixed_reference_is_the_mean_of_the_log_probs(kappa: float) -> None:
    rows = [judgment([-9.0, -4.0], [-10.5, -7.25]), judgment([-3.0, -5.0], [-2.0, -8.0])]
    given = [row["policy_logps"] for row in rows]
    slow = [
        [(1 - kappa) * p + kappa * q for p, q in zip(row["policy_logps"], row["reference_logps"], strict=True)]
        for row in rows
    ]
    found = refine.mixed(rows, given, kappa)
    assert found == [pytest.approx(values, rel=1e-12) for values in slow]
    assert kappa or found == given
    # Before the first step, the margin is kappa times the judge's (with the same beta, without a length penalty).
    settings = RefineTraining(beta=BETA, reference_mix=kappa)
    judges = [
        BETA
        * ((row["policy_logps"][1] - row["reference_logps"][1]) - (row["policy_logps"][0] - row["reference_logps"][0]))
        for row in rows
    ]
    margins = [
        BETA * ((row["policy_logps"][1] - mix[1]) - (row["policy_logps"][0] - mix[0]))
        for row, mix in zip(rows, slow, strict=True)
    ]
    assert margins == pytest.approx([kappa * judged for judged in judges], rel=1e-12)
    starts = refine._starts(settings, rows)
    assert starts == (pytest.approx(margins, rel=1e-12) if kappa else [])


def test_half_precision_mixes_with_the_precise_log_ratios() -> None:
    """Not with the difference of log-probs, which rounding has spoiled."""
    row = judgment([-9.0, -4.0], [0.0, 0.0], log_ratios=[0.25, -0.5])
    assert refine.mixed([row], [[-9.0, -4.0]], 0.5) == [[-9.125, -3.75]]


def test_a_mix_without_log_probs_of_pi_init_is_refused() -> None:
    with pytest.raises(DataError, match=r"refine\.reference_mix.*no log-probs of pi_init"):
        refine.mixed([judgment([-9.0, -4.0], [None, None])], [[-9.0, -4.0]], 0.5)  # type: ignore[list-item]


def test_the_first_margins_of_a_mixed_reference_are_known(policy: Path, tmp_path: Path) -> None:
    """Other ones name a reference that is another model, as margins other than 0 do without a mix."""
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float64)
    rows, starts = make_pairs(8), [0.2 * n - 0.7 for n in range(8)]
    for row, start in zip(rows, starts, strict=True):
        row["ref_chosen_logps"] = slow_logp(model, row["prompt_ids"], row["chosen_ids"]) - start / 0.1
        row["ref_rejected_logps"] = slow_logp(model, row["prompt_ids"], row["rejected_ids"])

    def train(name: str, first_margins: list[float]) -> None:
        train_preference(
            policy,
            rows,
            preference(beta=0.1),
            make_env(policy, tmp_path / name),
            reference_path=None,
            refinement=None,
            loss=PairLoss(divergence="chi_squared", first_margins=first_margins),
            start=Start(0.002),
        )

    train("right", starts)
    with pytest.raises(StageError, match="from those of the judge"):
        train("wrong", [start + 0.1 for start in starts])
    with pytest.raises(StageError, match="and should be 0"):
        train("none", [])


# --- in the plan

VARIANTS: dict[str, dict[str, Any]] = {
    ", loss ipo": {"loss": "ipo"},
    ", loss distill": {"loss": "distill"},
    ", divergence chi_squared": {"divergence": "chi_squared"},
    ", sft_weight 0.5": {"sft_weight": 0.5},
    ", reference mixed with pi_init (0.25)": {"reference_mix": 0.25},
}
PLAIN = {"noise": {"lambdas": [0.0, 0.0]}}


@pytest.mark.parametrize(("words", "setting"), VARIANTS.items())
def test_a_plan_says_what_is_minimised_and_only_refinements_change(words: str, setting: dict[str, Any]) -> None:
    before, after = plan_of(**PLAIN), plan_of(**PLAIN, refine=setting)
    assert words in after.stage("refine-1").role
    assert words not in before.stage("refine-1").role
    own, theirs = ({stage.id: stage.key for stage in plan.stages} for plan in (after, before))
    first = next(stage.id for stage in after.stages if own[stage.id] != theirs[stage.id])
    assert first == "refine-1"
    assert own["judge-1"] == theirs["judge-1"]
    assert {*own} == {*theirs}  # no pass more


def test_defaults_move_no_key() -> None:
    spelled = {"loss": "sigmoid", "divergence": "reverse_kl", "sft_weight": 0.0, "reference_mix": 0.0}
    assert [s.key for s in plan_of(refine=spelled).stages] == [s.key for s in plan_of().stages]
