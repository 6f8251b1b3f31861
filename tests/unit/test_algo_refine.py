"""DPO and refinement: losses, flags, the window of tau, de-coupled detection."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from spa_recipes.algo.decoupled import DecoupledLogps, chunked_decoupled_logps, decoupled_logits
from spa_recipes.algo.logps import LmHead, sequence_logps
from spa_recipes.algo.refine import ThresholdWindow, dpo_loss, dpo_margin, flag_noisy, percentile, refined_loss
from tests.kit import reference_math as plain
from tests.kit.tiny_models import PROMPTS, RESPONSES, padded, tiny_llama

MARGINS = [-40.0, -3.0, -0.1, 0.0, 0.2, 2.5, 60.0]


def test_margin() -> None:
    chosen_B, rejected_B, reference_chosen_B, reference_rejected_B = (
        torch.tensor([value], dtype=torch.float64) for value in (-10.0, -12.0, -11.0, -9.0)
    )
    margin_B = dpo_margin(chosen_B, rejected_B, reference_chosen_B, reference_rejected_B, beta=0.1)
    assert margin_B.item() == pytest.approx(0.1 * (-10 + 11) - 0.1 * (-12 + 9))


def test_equal_models_have_margin_zero() -> None:
    chosen_B, rejected_B = torch.randn(5), torch.randn(5)
    assert torch.equal(dpo_margin(chosen_B, rejected_B, chosen_B, rejected_B, beta=0.3), torch.zeros(5))


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("z", [0.0, 1.0])
def test_refined_loss_and_its_slope(alpha: float, z: float) -> None:
    margin_B = torch.tensor(MARGINS, requires_grad=True)
    loss_B = refined_loss(margin_B, torch.full_like(margin_B, z), alpha)
    loss_B.sum().backward()
    assert loss_B.tolist() == pytest.approx([plain.refined_loss(m, z, alpha) for m in MARGINS], rel=1e-5, abs=1e-12)
    assert margin_B.grad is not None
    slopes = [plain.refined_loss_slope(m, z, alpha) for m in MARGINS]
    assert margin_B.grad.tolist() == pytest.approx(slopes, rel=1e-5, abs=1e-12)


def test_without_flags_or_alpha_it_is_dpo() -> None:
    margin_B = torch.tensor(MARGINS)
    assert torch.equal(refined_loss(margin_B, torch.zeros_like(margin_B), 0.1), dpo_loss(margin_B))
    assert torch.equal(refined_loss(margin_B, torch.ones_like(margin_B), 0.0), dpo_loss(margin_B))


def test_flags() -> None:
    p_B = torch.tensor([0.2, 0.5, 0.7], requires_grad=True)
    assert flag_noisy(p_B, 0.5).tolist() == [1.0, 0.0, 0.0]
    assert flag_noisy(p_B, None).tolist() == [0.0, 0.0, 0.0]
    assert not flag_noisy(p_B, 0.5).requires_grad


@given(values=st.lists(st.floats(0, 1), min_size=1, max_size=60), k=st.floats(0.1, 99.9))
def test_percentile_is_numpys(values: list[float], k: float) -> None:
    assert percentile(values, k) == pytest.approx(float(np.percentile(values, k)), abs=1e-12)
    assert percentile(values, k) == pytest.approx(plain.percentile(values, k), abs=1e-12)


def test_no_percentile_of_nothing() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 10)


def test_window_fills_rolls_and_survives_json() -> None:
    window = ThresholdWindow(k=10, size=20, min_pairs=3)
    window.push([0.5, 0.4])
    assert window.tau() is None
    window.push([0.3])
    assert window.tau() == pytest.approx(plain.percentile([0.5, 0.4, 0.3], 10))
    values = torch.rand(50, generator=torch.Generator().manual_seed(1)).tolist()
    window.push(values)
    assert len(window) == 20
    assert window.tau() == pytest.approx(plain.percentile(values[-20:], 10))
    again = ThresholdWindow(k=10, size=20, min_pairs=3)
    again.load_state_dict(json.loads(json.dumps(window.state_dict())))
    assert again.tau() == window.tau()
    assert again.state_dict() == window.state_dict()


@settings(max_examples=25, deadline=None)
@given(lam=st.sampled_from([0.0, 0.125, 0.5, 2.0]), chunk_size=st.integers(1, 9), seed=st.integers(0, 50))
def test_decoupled_pass_is_the_obvious_one(lam: float, chunk_size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden_ND, head_VD = (torch.randn(n, 4, generator=generator).double().requires_grad_() for n in (6, 8))
    reference_hidden_ND = torch.randn(6, 5, generator=generator).double()
    reference_head = LmHead(torch.randn(8, 5, generator=generator).double(), scale=0.5)
    targets_N = torch.randint(8, (6,), generator=generator)
    logps = chunked_decoupled_logps(
        hidden_ND, LmHead(head_VD), reference_hidden_ND, reference_head, targets_N, lam, chunk_size
    )
    policy, reference = (hidden_ND @ head_VD.T).tolist(), (reference_hidden_ND @ reference_head.weight.T * 0.5).tolist()
    for place, target in enumerate(targets_N.tolist()):
        mixed = plain.decoupled_logits(policy, reference, lam)[place]
        assert logps.policy[place].item() == pytest.approx(plain.log_softmax(policy[place])[target])
        assert logps.reference[place].item() == pytest.approx(plain.log_softmax(reference[place])[target])
        assert logps.decoupled[place].item() == pytest.approx(plain.log_softmax(mixed)[target])
    assert not logps.reference.requires_grad
    assert not logps.decoupled.requires_grad
    if lam == 0:
        assert torch.equal(logps.decoupled, logps.policy.detach())
    ours = torch.autograd.grad(logps.policy.sum(), [hidden_ND, head_VD])
    obvious = torch.log_softmax(hidden_ND @ head_VD.T, -1)[torch.arange(6), targets_N]
    for our, their in zip(ours, torch.autograd.grad(obvious.sum(), [hidden_ND, head_VD]), strict=True):
        assert torch.allclose(our, their, rtol=1e-10, atol=1e-12)


def test_lambda_zero_leaves_the_logits() -> None:
    h_theta, h_ref = torch.randn(3, 4), torch.randn(3, 4)
    assert torch.equal(decoupled_logits(h_theta, h_ref, 0.0), h_theta)
    assert torch.allclose(decoupled_logits(h_theta, h_ref, 0.5), 1.5 * h_theta - 0.5 * h_ref)


def test_vocabularies_must_agree() -> None:
    arguments = (torch.zeros(2, 3), LmHead(torch.zeros(5, 3)), torch.zeros(2, 3), LmHead(torch.zeros(6, 3)))
    with pytest.raises(ValueError, match="different vocabularies"):
        chunked_decoupled_logps(*arguments, torch.tensor([0, 1]), 0.5)
    with pytest.raises(ValueError, match="shapes disagree"):
        chunked_decoupled_logps(*arguments[:2], torch.zeros(3, 3), arguments[3], torch.tensor([0, 1]), 0.5)


@pytest.mark.parametrize("lam", [0.0, 0.5])
def test_the_whole_refinement_on_two_llamas(lam: float) -> None:
    """Two random models in float32 against Python lists in float64: p~, flags, loss, and d loss / d weights."""
    beta, alpha = 0.3, 0.1
    policy, reference = tiny_llama(1), tiny_llama(3)
    rejected = [[14, 2], [15], [16, 9, 2]]
    batches = {"chosen": RESPONSES, "rejected": rejected}

    sums: dict[str, list[dict[str, float]]] = {}
    for side, responses in batches.items():
        sums[side] = []
        for prompt, response in zip(PROMPTS, responses, strict=True):
            ids, mask = prompt + response, [0] * len(prompt) + [1] * len(response)
            with torch.no_grad():
                h_theta = policy.double()(torch.tensor([ids])).logits[0].tolist()
                h_ref = reference.double()(torch.tensor([ids])).logits[0].tolist()
            mixed = plain.decoupled_logits(h_theta, h_ref, lam)
            sums[side].append(
                {
                    "policy": plain.sequence_logp(h_theta, ids, mask),
                    "reference": plain.sequence_logp(h_ref, ids, mask),
                    "mixed": plain.sequence_logp(mixed, ids, mask),
                }
            )
    margins, p_detect = [], []
    for w, l in zip(sums["chosen"], sums["rejected"], strict=True):  # noqa: E741
        margins.append(beta * (w["policy"] - w["reference"]) - beta * (l["policy"] - l["reference"]))
        p_detect.append(plain.preference_probability(beta, w["mixed"], w["reference"], l["mixed"], l["reference"]))
    tau = sorted(p_detect)[1]
    assert all(abs(p - tau) > 2e-5 for p in p_detect if p != tau)  # more than float32 is wrong by
    z = [1.0 if p < tau else 0.0 for p in p_detect]
    losses = [plain.refined_loss(m, flag, alpha) for m, flag in zip(margins, z, strict=True)]

    policy.float(), reference.float()
    ours = {side: _fused(policy, reference, responses, lam) for side, responses in batches.items()}
    ours_w, ours_l = ours["chosen"], ours["rejected"]
    margin_B = dpo_margin(ours_w.policy, ours_l.policy, ours_w.reference, ours_l.reference, beta)
    detect_B = dpo_margin(ours_w.decoupled, ours_l.decoupled, ours_w.reference, ours_l.reference, beta)
    p_detect_B = torch.sigmoid(detect_B)
    z_B = flag_noisy(p_detect_B, tau + 1e-5)
    loss_B = refined_loss(margin_B, flag_noisy(p_detect_B, tau - 1e-5), alpha)
    assert margin_B.tolist() == pytest.approx(margins, rel=1e-5)
    assert p_detect_B.tolist() == pytest.approx(p_detect, rel=1e-5)
    assert z_B.sum() == sum(z) + 1  # the one that is tau itself
    assert loss_B.tolist() == pytest.approx(losses, rel=1e-5)

    # d loss / d weights = sum over pairs of (d loss / d margin) * (d margin / d weights): the first factor in plain
    # Python, the second from whole logits.
    weights = [policy.model.layers[0].self_attn.q_proj.weight, policy.lm_head.weight]
    whole_B = beta * (_whole(policy, RESPONSES) - _whole(policy, rejected))
    slopes = [plain.refined_loss_slope(m, flag, alpha) / len(z) for m, flag in zip(margins, z, strict=True)]
    expected = torch.autograd.grad((whole_B * torch.tensor(slopes)).sum(), weights)
    for ours_VD, expected_VD in zip(torch.autograd.grad(loss_B.mean(), weights), expected, strict=True):
        assert (ours_VD - expected_VD).norm() < 1e-5 * expected_VD.norm()


def _whole(model: LlamaForCausalLM, responses: list[list[int]]) -> torch.Tensor:
    """log pi(y|x) from whole logits."""
    ids_BT, mask_BT = padded(PROMPTS, responses)
    return sequence_logps(model(ids_BT).logits, ids_BT, mask_BT)


def _fused(
    policy: LlamaForCausalLM, reference: LlamaForCausalLM, responses: list[list[int]], lam: float
) -> DecoupledLogps:
    """Per-sequence sums of the chunked pass over a padded batch."""
    ids_BT, mask_BT = padded(PROMPTS, responses)
    scored_BT = mask_BT[:, 1:].bool()
    with torch.no_grad():
        reference_hidden_ND = reference.model(ids_BT).last_hidden_state[:, :-1][scored_BT]
    logps = chunked_decoupled_logps(
        policy.model(ids_BT).last_hidden_state[:, :-1][scored_BT],
        LmHead(policy.lm_head.weight),
        reference_hidden_ND,
        LmHead(reference.lm_head.weight),
        ids_BT[:, 1:][scored_BT],
        lam,
        chunk_size=2,
    )
    return type(logps)(*(torch.zeros(scored_BT.shape).masked_scatter(scored_BT, part).sum(1) for part in logps))
