"""The detector's log-ratios by derivatives, against their definition in float64 on whole logits."""

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import peft
import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM, PreTrainedModel

from spa_recipes.algo.decoupled import chunked_decoupled_logps, decoupled_log_ratios, decoupled_logits
from spa_recipes.algo.logps import LmHead
from spa_recipes.algo.tangents import Dual
from spa_recipes.errors import StageError
from spa_recipes.recipe.schema import FixedThreshold, PercentileThreshold
from spa_recipes.training import along_update
from spa_recipes.training.along_update import AlongUpdate
from spa_recipes.training.env import Refinement
from spa_recipes.training.preference import NoiseDetector
from spa_recipes.training.response_logps import IGNORED
from tests.kit.float64 import InFloat64
from tests.kit.tiny_models import VOCAB, build
from tests.kit.updates import moved, random_update

LAMBDAS = (0.0, 0.5)


def batch(rows: int = 4, prompt: int = 5, length: int = 17) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts whose first tokens are a prompt, every second one padded on the right."""
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(5, VOCAB, (rows, length), generator=generator)
    labels_BT = ids_BT.clone()
    labels_BT[:, :prompt] = IGNORED
    labels_BT[1::2, -4:] = IGNORED
    return ids_BT, labels_BT


def definition(
    policy: PreTrainedModel, reference: PreTrainedModel, ids_BT: torch.Tensor, labels_BT: torch.Tensor, lam: float
) -> torch.Tensor:
    """log pi~ - log pi_ref from whole logits in float64."""
    with torch.no_grad(), InFloat64():
        theirs_BTV = reference.double()(input_ids=ids_BT).logits
        ours_BTV = decoupled_logits(policy.double()(input_ids=ids_BT).logits, theirs_BTV, lam)
    at_BT = labels_BT[:, 1:] != IGNORED
    tokens_BT1 = ids_BT[:, 1:, None]
    tilted_BT, plain_BT = (
        logits_BTV[:, :-1].log_softmax(dim=-1).gather(-1, tokens_BT1).squeeze(-1)
        for logits_BTV in (ours_BTV, theirs_BTV)
    )
    return ((tilted_BT - plain_BT) * at_BT).sum(dim=1)


def found(
    policy: PreTrainedModel, reference: PreTrainedModel, lam: float, stored: PreTrainedModel | None = None
) -> torch.Tensor:
    log_ratios_B = AlongUpdate(reference, stored, lam, pytest.fail).log_ratios(policy, *batch())
    assert log_ratios_B is not None
    return log_ratios_B


@pytest.mark.parametrize("lam", LAMBDAS)
def test_they_are_exact_where_logits_are_linear_in_the_update(lam: float) -> None:
    reference = build("llama").double()
    update = {"lm_head.weight": random_update(reference, 1.0)["lm_head.weight"]}
    policy = moved(reference, update)
    with InFloat64():
        log_ratios_B = found(policy, reference, lam)
    expected_B = definition(policy, reference, *batch(), lam)
    assert expected_B.abs().min() > 0.1
    torch.testing.assert_close(log_ratios_B, expected_B, rtol=0, atol=1e-10)


@pytest.mark.parametrize("lam", LAMBDAS)
@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2"])
def test_their_error_is_of_the_third_order(kind: str, lam: float) -> None:
    reference = build(kind).double()
    update = random_update(reference, 1.0)
    errors = []
    for size in (4e-3, 2e-3, 1e-3):
        policy = moved(reference, update, size)
        with InFloat64():
            log_ratios_B = found(policy, reference, lam)
        errors.append((log_ratios_B - definition(policy, reference, *batch(), lam)).norm())
    for larger, smaller in pairwise(errors):
        assert 6.5 < larger / smaller < 9.5


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 5), (64, 64)])
def test_a_tile_at_a_time_gives_the_same(rows: int, columns: int) -> None:
    """With tangents from tiny to so large that the exponentials of whole logits would overflow in float32."""
    torch.manual_seed(0)
    hidden = Dual(torch.randn(7, 4, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64))
    sizes_N = torch.tensor([1e-6, 1e-3, 1.0, 1e3, 1e-6, 1.0, 1e3], dtype=torch.float64)
    hidden.tangent[:] *= sizes_N[:, None]
    weight, bias = torch.randn(11, 4, dtype=torch.float64), torch.randn(11, dtype=torch.float64)
    targets_N = torch.randint(0, 11, (7,))
    head = LmHead(weight, bias, 1.0, None)
    z_NV = (hidden.value - 0.5 * hidden.tangent) @ weight.T + bias
    expected_N = (z_NV + 1.5 * hidden.tangent @ weight.T).log_softmax(-1) - z_NV.log_softmax(-1)
    expected_N = expected_N.gather(-1, targets_N[:, None]).squeeze(-1)
    settings: dict[str, Any] = {"at": 0.5, "reach": 1.5, "rows": rows, "columns": columns}
    exact_N = decoupled_log_ratios(hidden, head, None, None, targets_N, **settings)
    torch.testing.assert_close(exact_N, expected_N, rtol=1e-9, atol=1e-13)
    single = Dual(*(part.float() for part in hidden))
    head = LmHead(weight.float(), bias.float(), 1.0, None)
    rounded_N = decoupled_log_ratios(single, head, None, None, targets_N, **settings)
    assert bool(((rounded_N - expected_N).abs() <= 1e-6 * sizes_N.clamp(min=1.0)).all())


@torch.no_grad()
def subtracted(
    policy: PreTrainedModel, reference: PreTrainedModel, ids_BT: torch.Tensor, labels_BT: torch.Tensor, lam: float
) -> torch.Tensor:
    """log pi~ - log pi_ref as a training in bfloat16 without derivatives has it."""
    at_BT = labels_BT[:, 1:] != IGNORED
    with torch.autocast("cpu", torch.bfloat16):
        ours_ND, theirs_ND = (
            model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state[:, :-1][at_BT]
            for model in (policy, reference)
        )
        heads = (LmHead(model.lm_head.weight, None, 1.0, None) for model in (policy, reference))
        found = chunked_decoupled_logps(ours_ND, next(heads), theirs_ND, next(heads), ids_BT[:, 1:][at_BT], lam)
    of_tokens_N = found.decoupled - found.reference
    return of_tokens_N.new_zeros(at_BT.shape).masked_scatter(at_BT, of_tokens_N).sum(dim=1)


def lowest(margins: Sequence[float], count: int = 6) -> set[int]:
    return set(sorted(range(len(margins)), key=margins.__getitem__)[:count])


def agreement(one: Sequence[float], other: Sequence[float]) -> float:
    """The correlation of ranks."""
    ranks = [torch.tensor(values).argsort().argsort().double() for values in (one, other)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


def margins(log_ratios_B: torch.Tensor | None) -> list[float]:
    """The first half of some texts against the second."""
    assert log_ratios_B is not None
    chosen_B, rejected_B = log_ratios_B.double().chunk(2)
    return [float(margin) for margin in chosen_B - rejected_B]


@pytest.mark.parametrize("lam", LAMBDAS)
def test_in_bfloat16_they_flag_the_right_pairs_where_a_difference_does_not(lam: float) -> None:
    """24 pairs of texts with margins below half a nat, and a float32 policy a small update away."""
    reference = build("llama").bfloat16()
    policy = moved(reference.float(), random_update(reference, 1e-3))
    reference.bfloat16()
    ids_BT, labels_BT = batch(rows=48)
    by_derivative = margins(AlongUpdate(reference, None, lam, pytest.fail).log_ratios(policy, ids_BT, labels_BT))
    by_difference = margins(subtracted(policy, reference, ids_BT, labels_BT, lam))
    true = margins(definition(policy, reference, ids_BT, labels_BT, lam))
    assert sorted(map(abs, true))[len(true) // 2] < 0.5
    assert len(lowest(by_derivative) & lowest(true)) >= 5
    assert agreement(by_derivative, true) > 0.98
    assert len(lowest(by_difference) & lowest(true)) <= 4
    assert agreement(by_difference, true) < 0.8


def trained(reference: PreTrainedModel, learning_rate: float) -> PreTrainedModel:
    """A float32 policy after ten steps of DPO on random pairs."""
    policy, start = (copy.deepcopy(reference).float() for _ in range(2))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=learning_rate, weight_decay=0.0)
    generator = torch.Generator().manual_seed(5)
    for _ in range(10):
        ids_BT = torch.randint(5, VOCAB, (16, 17), generator=generator)
        ours_B, theirs_B = (
            model(input_ids=ids_BT).logits[:, 4:-1].log_softmax(-1).gather(-1, ids_BT[:, 5:, None]).sum(dim=(1, 2))
            for model in (policy, start)
        )
        chosen_B, rejected_B = (ours_B - theirs_B.detach()).chunk(2)
        optimizer.zero_grad()
        torch.nn.functional.softplus(-0.1 * (chosen_B - rejected_B)).mean().backward()
        optimizer.step()
    return policy


@pytest.mark.parametrize("lam", LAMBDAS)
@pytest.mark.parametrize("learning_rate", [3e-5, 1e-3])
def test_small_and_large_trainings_are_ranked_as_in_float64(
    learning_rate: float, lam: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of median margins of a few hundredths of a nat, and of more than a nat, where derivatives at the reference lack
    what is of the second order."""
    reference = build("llama").bfloat16()
    policy = trained(reference, learning_rate)
    ids_BT, labels_BT = batch(rows=48)
    true = margins(definition(copy.deepcopy(policy), copy.deepcopy(reference), ids_BT, labels_BT, lam))
    is_large = learning_rate == 1e-3
    assert (sorted(map(abs, true))[len(true) // 2] > 1) == is_large

    def found_margins() -> list[float]:
        return margins(AlongUpdate(reference, None, lam, pytest.fail).log_ratios(policy, ids_BT, labels_BT))

    half_way = found_margins()
    assert agreement(half_way, true) > 0.98
    assert len(lowest(half_way) & lowest(true)) >= 5
    monkeypatch.setattr(along_update, "HALF_WAY", 0.0)
    assert (agreement(found_margins(), true) < 0.9) == is_large


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lam", LAMBDAS)
def test_what_half_precision_took_from_the_start_is_no_part_of_the_update(lam: float, dtype: torch.dtype) -> None:
    start = build("llama")
    policy = moved(start, random_update(start, 1e-4))
    reference = build("llama").to(dtype)
    log_ratios_B = found(policy, reference, lam, stored=start)
    expected_B = definition(policy, start, *batch(), lam)
    torch.testing.assert_close(log_ratios_B, expected_B, rtol=0.1, atol=0.05 * float(expected_B.abs().max()))


@pytest.mark.parametrize("lam", LAMBDAS)
def test_an_adapter_is_differentiated_along_without_merging_it(lam: float) -> None:
    reference = build("llama").bfloat16()
    settings = peft.LoraConfig(r=4, lora_alpha=8, lora_dropout=0.5, target_modules="all-linear", task_type="CAUSAL_LM")
    torch.manual_seed(0)
    policy = peft.get_peft_model(build("llama").bfloat16(), settings).train()
    along = AlongUpdate(None, None, lam, pytest.fail)
    assert along.log_ratios(policy, *batch()).abs().max() == 0  # type: ignore[union-attr]
    for name, weight in policy.named_parameters():
        if "lora_B" in name:
            weight.data = 1e-3 * torch.randn_like(weight)
    log_ratios_B = along.log_ratios(policy, *batch())
    assert log_ratios_B is not None
    assert policy.training
    merged = policy.double().merge_and_unload().eval()
    expected_B = definition(merged, reference, *batch(), lam)
    torch.testing.assert_close(log_ratios_B, expected_B, rtol=0.1, atol=0.05 * float(expected_B.abs().max()))


def test_the_update_is_the_one_of_the_step() -> None:
    reference = build("llama")
    policy, further = (moved(reference, random_update(reference, 1e-3), at) for at in (1.0, 2.0))
    along = AlongUpdate(reference, None, 0.0, pytest.fail)
    first_B = along.log_ratios(policy, *batch())
    assert torch.equal(along.log_ratios(further, *batch()), first_B)  # type: ignore[arg-type]
    along.forget()
    second_B = along.log_ratios(further, *batch())
    torch.testing.assert_close(second_B, 2 * first_B, rtol=0.1, atol=0.01)  # type: ignore[operator]


def test_a_policy_that_has_not_moved_has_no_log_ratios() -> None:
    assert not found(build("llama"), build("llama"), 0.5).any()


def test_a_model_without_forward_mode_is_named_once() -> None:
    config = BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=1, n_head=4)
    reference = BloomForCausalLM(config).eval()
    said: list[str] = []
    along = AlongUpdate(reference, None, 0.0, said.append)
    assert along.log_ratios(moved(reference, random_update(reference, 1e-3)), *batch()) is None
    assert said == ["GeLUFunction has no derivative in forward mode"]
    assert not along.works


def test_log_ratios_that_are_all_0_stop_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(along_update, "decoupled_log_ratios", lambda *_, **__: torch.zeros(40, dtype=torch.float64))
    reference = build("llama")
    with pytest.raises(StageError, match="of all responses is exactly 0: the model has an operation that carries none"):
        found(moved(reference, random_update(reference, 1e-3)), reference, 0.0)


def test_p_is_read_from_the_first_pair_that_is_in_the_window_when_the_warm_up_ends() -> None:
    window = Refinement(0.1, 0.5, PercentileThreshold(window=20, min_pairs=4), 0.2)
    read = [NoiseDetector(window, warmup_steps=10).reads(done, pairs_per_step=8) for done in range(12)]
    assert read == [False] * 7 + [True] * 5
    fixed = Refinement(0.1, 0.5, FixedThreshold(type="fixed", tau=0.4), 0.2)
    assert [NoiseDetector(fixed, warmup_steps=2).reads(done, pairs_per_step=8) for done in range(4)] == [
        *(False, False, True, True)
    ]
