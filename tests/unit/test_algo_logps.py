"""Log-probabilities against the plain Python of `reference_math`."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from spa_recipes.algo.logps import LmHead, chunked_token_logps, logit_rules, sequence_logps, tiled_token_logps
from tests.kit import reference_math as plain
from tests.kit.tiny_models import PROMPTS, RESPONSES, padded, tiny_llama

torch.set_num_threads(1)  # these models are too small for more, and tests share the machine


def plain_logps(model: LlamaForCausalLM) -> list[float]:
    """Each sequence by itself: model in float64, the rest in Python lists."""
    result = []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        with torch.no_grad():
            logits = model.double()(torch.tensor([prompt + response])).logits[0].tolist()
        result.append(plain.sequence_logp(logits, prompt + response, [0] * len(prompt) + [1] * len(response)))
    model.float()
    return result


@pytest.mark.parametrize("seed", range(4))
def test_sequence_logps_of_a_ragged_batch(seed: int) -> None:
    model = tiny_llama(seed)
    input_ids_BT, mask_BT = padded(PROMPTS, RESPONSES)
    expected = plain_logps(model)
    with torch.no_grad():
        logps_B = sequence_logps(model(input_ids_BT).logits, input_ids_BT, mask_BT)
    assert logps_B.tolist() == pytest.approx(expected, rel=1e-5)


def test_a_sequence_does_not_depend_on_its_batch() -> None:
    model = tiny_llama()
    input_ids_BT, mask_BT = padded(PROMPTS, RESPONSES)
    with torch.no_grad():
        together = sequence_logps(model(input_ids_BT).logits, input_ids_BT, mask_BT)
        turned = sequence_logps(model(input_ids_BT.flip(0)).logits, input_ids_BT.flip(0), mask_BT.flip(0)).flip(0)
        alone = []
        for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
            ids_1T, mask_1T = padded([prompt], [response])
            alone.append(sequence_logps(model(ids_1T).logits, ids_1T, mask_1T))
    assert torch.allclose(together, turned, rtol=1e-5)
    assert torch.allclose(together, torch.cat(alone), rtol=1e-5)


def test_a_response_cannot_start_a_sequence() -> None:
    with pytest.raises(ValueError, match="first token"):
        sequence_logps(torch.zeros(1, 2, 3), torch.zeros(1, 2, dtype=torch.long), torch.ones(1, 2))


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="shapes disagree"):
        sequence_logps(torch.zeros(1, 2, 3), torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="shapes disagree"):
        chunked_token_logps(torch.zeros(2, 3), torch.zeros(5, 3), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="shapes disagree"):
        tiled_token_logps(
            torch.zeros(2, 3), LmHead(torch.zeros(5, 3)), torch.zeros(3, dtype=torch.long), rows=2, columns=2
        )
    with pytest.raises(ValueError, match="chunk_size"):
        chunked_token_logps(torch.zeros(2, 3), torch.zeros(5, 3), torch.zeros(2, dtype=torch.long), chunk_size=0)


@settings(max_examples=30, deadline=None)
@given(
    tokens=st.integers(0, 9),
    chunk_size=st.integers(1, 12),
    scale=st.sampled_from([1.0, 0.25]),
    softcap=st.sampled_from([None, 3.0]),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_chunks_change_nothing(
    tokens: int, chunk_size: int, scale: float, softcap: float | None, bias: bool, seed: int
) -> None:
    """Value and all gradients equal those of the obvious code, in float64."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    hidden_ND, head_VD, bias_V = random(tokens, 4), random(7, 4), random(7) if bias else None
    targets_N = torch.randint(7, (tokens,), generator=generator)
    inputs = [tensor for tensor in (hidden_ND, head_VD, bias_V) if tensor is not None]
    weights_N = torch.randn(tokens, generator=generator, dtype=torch.float64)
    chunked_N = chunked_token_logps(hidden_ND, head_VD, targets_N, bias_V, chunk_size, scale=scale, softcap=softcap)

    logits_NV = (hidden_ND @ head_VD.T + (0 if bias_V is None else bias_V)) * scale
    logits_NV = logits_NV if softcap is None else softcap * torch.tanh(logits_NV / softcap)
    obvious_N = torch.log_softmax(logits_NV, -1)[torch.arange(tokens), targets_N]
    assert torch.allclose(chunked_N, obvious_N, rtol=1e-12, atol=1e-12)
    ours = torch.autograd.grad((chunked_N * weights_N).sum(), inputs)
    theirs = torch.autograd.grad((obvious_N * weights_N).sum(), inputs)
    for our, their in zip(ours, theirs, strict=True):
        assert torch.allclose(our, their, rtol=1e-10, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(0, 9),
    rows=st.integers(1, 12),
    columns=st.integers(1, 9),
    scale=st.sampled_from([1.0, 0.25]),
    softcap=st.sampled_from([None, 3.0]),
    bias=st.booleans(),
    spread=st.sampled_from([1.0, 100.0]),
    seed=st.integers(0, 99),
)
def test_tiles_change_nothing(
    tokens: int, rows: int, columns: int, scale: float, softcap: float | None, bias: bool, spread: float, seed: int
) -> None:
    """Parts of the vocabulary give the log-probs of the whole, also where one word has nearly all of it."""
    generator = torch.Generator().manual_seed(seed)
    hidden_ND = torch.randn(tokens, 4, generator=generator, dtype=torch.float64)
    head_VD = spread * torch.randn(7, 4, generator=generator, dtype=torch.float64)
    bias_V = torch.randn(7, generator=generator, dtype=torch.float64) if bias else None
    targets_N = torch.randint(7, (tokens,), generator=generator)
    head = LmHead(head_VD, bias_V, scale, softcap)
    tiled_N = tiled_token_logps(hidden_ND, head, targets_N, rows=rows, columns=columns)
    whole_N = chunked_token_logps(hidden_ND, head_VD, targets_N, bias_V, scale=scale, softcap=softcap)
    assert torch.allclose(tiled_N, whole_N, rtol=1e-12, atol=1e-11)


def test_plain_python_agrees_on_token_logps() -> None:
    generator = torch.Generator().manual_seed(3)
    hidden_ND, head_VD = torch.randn(5, 4, generator=generator), torch.randn(9, 4, generator=generator)
    targets = [8, 0, 3, 3, 1]
    logits = (hidden_ND.double() @ head_VD.double().T).tolist()
    expected = [plain.log_softmax(row)[target] for row, target in zip(logits, targets, strict=True)]
    chunked_N = chunked_token_logps(hidden_ND, head_VD, torch.tensor(targets), chunk_size=2)
    tiled_N = tiled_token_logps(hidden_ND, LmHead(head_VD), torch.tensor(targets), rows=2, columns=4)
    for logps_N in (chunked_N, tiled_N):
        assert logps_N.tolist() == pytest.approx(expected, rel=1e-5)


def test_bfloat16_logits_get_a_float32_softmax() -> None:
    generator = torch.Generator().manual_seed(5)
    hidden_ND, head_VD = torch.randn(6, 8, generator=generator), torch.randn(11, 8, generator=generator)
    targets_N = torch.randint(11, (6,), generator=generator)
    half = [tensor.bfloat16().requires_grad_() for tensor in (hidden_ND, head_VD)]
    logps_N = chunked_token_logps(half[0], half[1], targets_N, chunk_size=4)
    tiled_N = tiled_token_logps(half[0], LmHead(half[1]), targets_N, rows=4, columns=4)
    assert logps_N.dtype == tiled_N.dtype == torch.float32
    exact_NV = torch.log_softmax((half[0] @ half[1].T).float(), -1)
    assert torch.allclose(logps_N, exact_NV[torch.arange(6), targets_N], rtol=1e-6)
    assert torch.allclose(tiled_N, exact_NV[torch.arange(6), targets_N], rtol=1e-6)
    whole_head_N = tiled_token_logps(half[0], LmHead(half[1].float()), targets_N, rows=4, columns=4)
    exact_NV = torch.log_softmax(half[0].float() @ half[1].float().T, -1)
    assert torch.allclose(whole_head_N, exact_NV[torch.arange(6), targets_N], rtol=1e-6)
    gradients = torch.autograd.grad(logps_N.sum(), half)
    assert [gradient.dtype for gradient in gradients] == [torch.bfloat16, torch.bfloat16]


def test_autocast_decides_the_precision_of_the_product() -> None:
    generator = torch.Generator().manual_seed(5)
    hidden_ND = torch.randn(6, 8, generator=generator).requires_grad_()
    head_VD = torch.randn(11, 8, generator=generator).requires_grad_()
    targets_N = torch.randint(11, (6,), generator=generator)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside_N = chunked_token_logps(hidden_ND, head_VD, targets_N)
    assert torch.equal(inside_N, chunked_token_logps(hidden_ND.bfloat16(), head_VD.bfloat16(), targets_N))
    (gradient_VD,) = torch.autograd.grad(inside_N.sum(), [head_VD])
    assert gradient_VD.dtype == torch.float32


def test_frozen_inputs_get_no_gradient() -> None:
    hidden_ND = torch.randn(3, 4, requires_grad=True)
    logps_N = chunked_token_logps(hidden_ND, torch.randn(5, 4), torch.tensor([0, 1, 2]))
    logps_N.sum().backward()
    assert hidden_ND.grad is not None


class _Config:
    model_type = "any"

    def __init__(self, **fields: object) -> None:
        self.__dict__.update(fields)


@pytest.mark.parametrize(
    ("fields", "rules"),
    [
        ({}, (1.0, None)),
        ({"final_logit_softcapping": 30.0}, (1.0, 30.0)),
        ({"logit_scale": 0.0625}, (0.0625, None)),
        ({"logit_scale": None}, (1.0, None)),
        ({"logits_scaling": 8.0}, (0.125, None)),
        ({"logits_scaling": 8.0, "model_type": "hyperclovax"}, (8.0, None)),
    ],
)
def test_logit_rules(fields: dict[str, object], rules: tuple[float, float | None]) -> None:
    assert logit_rules(_Config(**fields)) == rules
