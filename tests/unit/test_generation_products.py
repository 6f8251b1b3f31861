"""Products by oneDNN against float64, and what is left to torch."""

from typing import Any

import pytest
import torch
from torch.nn.functional import linear

from spa_recipes.generation import products
from spa_recipes.generation.products import fast_products

CPU = torch.device("cpu")


@pytest.fixture
def gains(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor with AVX-512; oneDNN has code for every one."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch is built without oneDNN")
    monkeypatch.setattr(products, "_gains", lambda: True)


@pytest.fixture
def by_onednn(gains: None, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the inputs that oneDNN got."""
    seen: list[tuple[int, ...]] = []
    original = torch.ops.mkldnn._linear_pointwise

    def pointwise(input: torch.Tensor, *rest: Any) -> Any:
        seen.append(tuple(input.shape))
        return original(input, *rest)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", pointwise)
    return seen


def test_torch_still_has_the_product() -> None:
    """Under a name that is not public; without it scoring is as right, and slower."""
    assert hasattr(torch.ops.mkldnn, "_linear_pointwise") == torch.backends.mkldnn.is_available()


@pytest.mark.parametrize("shape", [(5, 48), (1, 9, 48), (2, 3, 48), (48,)])
@pytest.mark.parametrize("bias", [True, False])
def test_products_are_those_of_the_definition(
    by_onednn: list[tuple[int, ...]], shape: tuple[int, ...], bias: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(48, 33, bias=bias)
    input_ = torch.randn(shape, generator=generator)
    with torch.inference_mode(), fast_products(CPU):
        output = layer(input_)
    assert by_onednn == [shape]
    exact = input_.double() @ layer.weight.double().T + (layer.bias.double() if bias else 0)
    assert output.shape == exact.shape
    assert torch.allclose(output.double(), exact, rtol=1e-5, atol=1e-5)
    layer(input_)
    assert by_onednn == [shape]  # behind the `with`, nothing is redirected


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
def test_other_tensors_are_left_to_torch(
    by_onednn: list[tuple[int, ...]], input_: torch.Tensor, weight: torch.Tensor
) -> None:
    with torch.inference_mode(), fast_products(CPU):
        output = linear(input_, weight)
    assert by_onednn == []
    assert torch.equal(output, torch.full((len(input_), 3), 4.0, dtype=input_.dtype))


def test_a_gradient_is_left_to_torch(by_onednn: list[tuple[int, ...]]) -> None:
    layer = torch.nn.Linear(4, 3)
    with fast_products(CPU):
        layer(torch.ones(2, 4)).sum().backward()
    assert by_onednn == []
    assert layer.weight.grad is not None


def test_other_devices_and_processors_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    for device in (CPU, torch.device("meta")):
        with fast_products(device) as mode:
            assert mode is None
