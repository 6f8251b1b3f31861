"""Products by oneDNN and their gradients against float64, and what is left to torch."""

import copy
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch.nn.functional import linear
from transformers import AutoModelForSequenceClassification

from spa_recipes.generation.rewards import sequence_rewards
from spa_recipes.generation.scoring import sequence_logps
from spa_recipes.models import products
from spa_recipes.models.products import fast_products
from spa_recipes.recipe.schema import Model
from spa_recipes.stages import score
from tests.kit.scoring import build, ragged
from tests.kit.stages import RUNTIME, context_of

CPU = torch.device("cpu")


@pytest.fixture
def gains(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor with AVX-512 that is not Intel's; oneDNN has code for every one."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch is built without oneDNN")
    monkeypatch.setattr(products, "_gains", lambda: True)


class Product(NamedTuple):
    """A product that oneDNN computed: shape of the input, and address of the weight."""

    shape: tuple[int, ...]
    weight: int


@pytest.fixture
def by_onednn(gains: None, monkeypatch: pytest.MonkeyPatch) -> list[Product]:
    seen: list[Product] = []
    original = torch.ops.mkldnn._linear_pointwise

    def pointwise(input: torch.Tensor, weight: torch.Tensor, *rest: Any) -> Any:
        seen.append(Product(tuple(input.shape), weight.data_ptr()))
        return original(input, weight, *rest)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", pointwise)
    return seen


# --- what this relies on in torch, which makes no promise about it


def test_torch_still_has_the_product() -> None:
    """The name is not public. Without it, scoring gives the same results more slowly."""
    assert hasattr(torch.ops.mkldnn, "_linear_pointwise") == torch.backends.mkldnn.is_available()


def test_the_product_still_takes_what_it_is_given(gains: None) -> None:
    assert str(torch.ops.mkldnn._linear_pointwise.default._schema) == (
        "mkldnn::_linear_pointwise(Tensor X, Tensor W, Tensor? B, str attr, Scalar?[] scalars, str? algorithm) "
        "-> Tensor Y"
    )


def test_a_processor_with_avx512_is_still_known_as_one() -> None:
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    if not {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512cd", "fma"} <= flags:
        pytest.skip("this processor has no AVX-512")
    assert products._gains() == (torch.backends.mkldnn.is_available() and "GenuineIntel" not in flags)


@pytest.mark.parametrize(("maker", "gains"), [("GenuineIntel", False), ("AuthenticAMD", True), (None, True)])
def test_an_intel_processor_is_left_to_mkl(monkeypatch: pytest.MonkeyPatch, maker: str | None, gains: bool) -> None:
    """MKL has AVX-512 code for it, and is the faster one there."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch is built without oneDNN")

    def read_text(path: Path) -> str:
        if maker is None:
            raise FileNotFoundError(path)
        return f"processor : 0\nvendor_id : {maker}\n"

    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(Path, "read_text", read_text)
    products._by_intel.cache_clear()
    assert products._gains() == gains
    products._by_intel.cache_clear()


@pytest.mark.parametrize("rows", [1, 7, 300])
def test_redirected_products_are_those_of_torch_beyond_rounding(by_onednn: list[Product], rows: int) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(96, 64)
    input_ = torch.randn(rows, 96)
    with torch.inference_mode():
        plain = layer(input_)
        assert by_onednn == []
        with fast_products(CPU):
            redirected = layer(input_)
    assert by_onednn == [Product((rows, 96), layer.weight.data_ptr())]
    assert torch.allclose(redirected, plain, rtol=1e-5, atol=1e-5)


# --- where it is used


def body_weights(model: torch.nn.Module) -> set[int]:
    """Addresses of the weights of all linear layers below the output layer."""
    return {
        layer.weight.data_ptr()
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and name not in ("lm_head", "score")
    }


@pytest.mark.parametrize("kind", ["llama", "doubling"])  # the one is packed, the other reads a text per row
def test_scoring_redirects_every_linear_layer_unless_it_is_told_not_to(by_onednn: list[Product], kind: str) -> None:
    model = build(kind)
    by_torch = sequence_logps(model, ragged(), tokens_per_batch=300, onednn_products=False)
    assert by_onednn == []
    by_default = sequence_logps(model, ragged(), tokens_per_batch=300)
    assert body_weights(model) <= {product.weight for product in by_onednn}
    assert by_default == pytest.approx(by_torch, rel=1e-5, abs=1e-4)


def test_rewards_redirect_every_linear_layer_unless_they_are_told_not_to(by_onednn: list[Product]) -> None:
    config = build("llama").config
    config.num_labels = 1
    model = AutoModelForSequenceClassification.from_config(config).eval()
    sequences = [item.prompt_ids + item.response_ids for item in ragged()]
    by_torch = sequence_rewards(model, sequences, tokens_per_batch=300, onednn_products=False)
    assert by_onednn == []
    by_default = sequence_rewards(model, sequences, tokens_per_batch=300)
    assert body_weights(model) <= {product.weight for product in by_onednn}
    assert by_default == pytest.approx(by_torch, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("wanted", [True, False])
def test_a_stage_does_as_the_recipe_says(
    by_onednn: list[Product], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: bool
) -> None:
    monkeypatch.setitem(RUNTIME["compute"], "onednn_products", wanted)
    monkeypatch.setattr(score, "for_inference", lambda *_: build("llama"))
    logps = score.score(context_of(tmp_path), "logps", Model(model_name_or_path="m"), ragged(4))
    assert logps is not None
    assert bool(by_onednn) == wanted


# --- each product


@pytest.mark.parametrize("shape", [(5, 48), (1, 9, 48), (2, 3, 48), (48,)])
@pytest.mark.parametrize("bias", [True, False])
def test_products_are_those_of_the_definition(by_onednn: list[Product], shape: tuple[int, ...], bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(48, 33, bias=bias)
    input_ = torch.randn(shape, generator=generator)
    with torch.inference_mode(), fast_products(CPU):
        output = layer(input_)
    assert by_onednn == [Product(shape, layer.weight.data_ptr())]
    exact = input_.double() @ layer.weight.double().T + (layer.bias.double() if bias else 0)
    assert output.shape == exact.shape
    assert torch.allclose(output.double(), exact, rtol=1e-5, atol=1e-5)
    layer(input_)
    assert len(by_onednn) == 1  # after the `with`, nothing is redirected


@pytest.mark.parametrize(
    ("input_", "weight"),
    [
        (torch.ones(2, 4, dtype=torch.bfloat16), torch.ones(3, 4, dtype=torch.bfloat16)),
        (torch.ones(2, 4, dtype=torch.float64), torch.ones(3, 4, dtype=torch.float64)),
        (torch.ones(4, 2).T, torch.ones(3, 4)),
        (torch.ones(2, 4), torch.ones(4, 3).T),
        (torch.ones(0, 4), torch.ones(3, 4)),
    ],
    ids=["bfloat16", "float64", "input across", "weight across", "empty"],
)
def test_other_tensors_are_left_to_torch(by_onednn: list[Product], input_: torch.Tensor, weight: torch.Tensor) -> None:
    with torch.inference_mode(), fast_products(CPU):
        output = linear(input_, weight)
    assert by_onednn == []
    assert torch.equal(output, torch.full((len(input_), 3), 4.0, dtype=input_.dtype))


# --- gradients


@pytest.fixture
def any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if small layers gained as well."""
    monkeypatch.setattr(products, "WORTH_A_GRADIENT", 1)


def test_a_small_layer_that_is_trained_is_left_to_torch(
    by_onednn: list[Product], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "WORTH_A_GRADIENT", 5 * 4 * 3)
    layer = torch.nn.Linear(4, 3)
    with fast_products(CPU):
        layer(torch.ones(4, 4)).sum().backward()
        assert by_onednn == []
        layer(torch.ones(5, 4)).sum().backward()
    assert len(by_onednn) == 2  # the input needs no gradient


@pytest.mark.parametrize("shape", [(5, 48), (1, 9, 48), (2, 3, 48), (48,)])
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_those_of_float64(
    by_onednn: list[Product], any_size: None, shape: tuple[int, ...], bias: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(48, 33, bias=bias)
    input_ = torch.randn(shape, generator=generator, requires_grad=True)
    wanted = torch.randn(*shape[:-1], 33, generator=generator)
    leaves = [input_, *layer.parameters()]
    with fast_products(CPU):
        output = layer(input_)
    ours = torch.autograd.grad((output * wanted).sum(), leaves)
    assert len(by_onednn) == 3  # the backward pass is oneDNN's, also after the `with`
    exact = copy.deepcopy(layer).double()
    leaves_64 = [input_.detach().double().requires_grad_(), *exact.parameters()]
    theirs = torch.autograd.grad((exact(leaves_64[0]) * wanted.double()).sum(), leaves_64)
    for our, their in zip(ours, theirs, strict=True):
        assert our.shape == their.shape
        assert torch.allclose(our.double(), their, rtol=1e-5, atol=1e-5)


def test_a_gradient_may_lie_in_memory_in_any_order(by_onednn: list[Product], any_size: None) -> None:
    layer, input_ = torch.nn.Linear(4, 3), torch.randn(5, 2, 4)
    for reduced in (lambda output: output.sum(), lambda output: (output.transpose(0, 1).contiguous() ** 2).sum()):
        [expected] = torch.autograd.grad(reduced(layer(input_)), [layer.weight])
        with fast_products(CPU):
            [got] = torch.autograd.grad(reduced(layer(input_)), [layer.weight])
        assert torch.allclose(got, expected, rtol=1e-5, atol=1e-5)
    assert by_onednn


def test_a_frozen_weight_costs_no_gradient(by_onednn: list[Product], any_size: None) -> None:
    layer = torch.nn.Linear(4, 3).requires_grad_(False)
    input_ = torch.randn(2, 4, requires_grad=True)
    with fast_products(CPU):
        layer(input_).sum().backward()
    assert len(by_onednn) == 2
    assert layer.weight.grad is None
    assert input_.grad is not None
    assert torch.allclose(input_.grad, layer.weight.sum(dim=0).expand(2, 4))


def test_under_autocast_products_are_left_to_torch(by_onednn: list[Product], any_size: None) -> None:
    layer = torch.nn.Linear(4, 3)
    with fast_products(CPU), torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.ones(2, 4)).dtype == torch.bfloat16
    assert by_onednn == []


def test_other_devices_and_processors_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    for device in (CPU, torch.device("meta")):
        with fast_products(device) as mode:
            assert mode is None
