"""Log-ratios by derivatives, against differences of slow float64 passes."""

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from spa_recipes.errors import StageError
from spa_recipes.generation import packing, scoring
from spa_recipes.generation.scoring import Scored, sequence_logps
from spa_recipes.generation.tangent import NoForwardModeError, sequence_log_ratios
from spa_recipes.models import forward_mode, products
from spa_recipes.models.products import fast_products
from spa_recipes.models.update import difference
from tests.kit.float64 import InFloat64
from tests.kit.scoring import build, ragged, with_shared_prompts
from tests.kit.updates import moved, random_update, stored_stochastically

KINDS = ["llama", "mistral", "wide mistral", "qwen3", "gemma2", "granite", "cohere", "gpt2", "doubling", "bare"]
ITEMS = with_shared_prompts(prompts=2, samples=2)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def ratios(policy: Any, reference: PreTrainedModel, items: list[Scored] = ITEMS, **settings: Any) -> list[float]:
    values = sequence_log_ratios(policy, reference, items, **{"tokens_per_batch": 300, **settings})
    return [value.log_ratio for value in values]


def logps(model: PreTrainedModel, items: list[Scored] = ITEMS) -> list[float]:
    return sequence_logps(model, items, tokens_per_batch=300)


def differences(policy: PreTrainedModel, reference: PreTrainedModel, items: list[Scored] = ITEMS) -> list[float]:
    """What two passes in float64 say."""
    with InFloat64():
        policy, reference = copy.deepcopy(policy).double(), copy.deepcopy(reference).double()
        return [a - b for a, b in zip(logps(policy, items), logps(reference, items), strict=True)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_derivative_is_that_of_central_differences(kind: str) -> None:
    reference = build(kind).double()
    update = random_update(reference, 1e-3)
    step = 1e-3
    with InFloat64():
        ahead, behind = (logps(moved(reference, update, 0.5 + h)) for h in (step, -step))
        found = ratios(moved(reference, update), reference)
    expected = [(a - b) / (2 * step) for a, b in zip(ahead, behind, strict=True)]
    assert found == pytest.approx(expected, abs=1e-8)
    assert min(map(abs, expected)) > 1e-4


@pytest.mark.parametrize(("nodes", "factor"), [(1, 8), (2, 32)])
def test_half_the_update_has_an_error_smaller_by_the_order_of_the_rule(nodes: Any, factor: int) -> None:
    reference = build("llama").double()
    errors = []
    for size in (4e-4, 2e-4):
        policy = moved(reference, random_update(reference, size))
        with InFloat64():
            found = ratios(policy, reference, nodes=nodes)
        errors.append(math.dist(found, differences(policy, reference)))
    assert errors[0] / errors[1] == pytest.approx(factor, rel=0.1)


def labels(values: list[float]) -> list[bool]:
    return [a > b for a, b in zip(values[::2], values[1::2], strict=True)]


def test_in_half_precision_labels_are_those_of_float64_and_two_passes_do_not_give_them() -> None:
    reference = build("llama").bfloat16()
    exact = moved(copy.deepcopy(reference).float(), random_update(reference, 3e-4))
    policy = stored_stochastically(exact)
    items = with_shared_prompts(prompts=40, samples=2)
    items.sort(key=lambda item: item.prompt_ids)
    true = differences(policy, reference, items)
    margins = [a - b for a, b in zip(true[::2], true[1::2], strict=True)]
    clear = [i for i, margin in enumerate(margins) if 0.01 <= abs(margin) <= 1]
    assert len(clear) >= 30
    tangent, subtracted = (
        labels(ratios(policy, reference, items)),
        [a - b for a, b in zip(logps(policy, items), logps(reference, items), strict=True)],
    )
    expected = labels(true)
    assert [tangent[i] for i in clear] == [expected[i] for i in clear]
    flipped = sum(labels(subtracted)[i] != expected[i] for i in clear)
    assert flipped >= len(clear) // 10


def test_float16_holds_tiny_updates() -> None:
    """The differences are below its smallest normal number; they are lifted."""
    reference = build("llama").bfloat16().half()
    policy = moved(copy.deepcopy(reference).float(), random_update(reference, 1e-5))
    update = difference(policy, reference)
    assert update.scale > 1
    assert ratios(update, reference) == pytest.approx(differences(policy, reference), rel=0.05, abs=3e-5)


def test_a_ratio_depends_on_neither_batch_nor_order_nor_packing(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = build("llama")
    update = difference(moved(reference, random_update(reference, 1e-3)), reference)
    items = with_shared_prompts(prompts=3)
    expected = ratios(update, reference, items)
    alone = [ratios(update, reference, [item], tokens_per_batch=1)[0] for item in items]
    assert alone == pytest.approx(expected, abs=1e-4)
    assert ratios(update, reference, items[::-1], tokens_per_batch=60)[::-1] == pytest.approx(expected, abs=1e-4)
    with monkeypatch.context() as patch:
        patch.setattr(scoring, "_layout", packing.as_grid)  # as on a GPU
        assert ratios(update, reference, items) == pytest.approx(expected, abs=1e-4)
    monkeypatch.setattr(scoring, "_can_be_packed", lambda *arguments: False)
    assert ratios(update, reference, items) == pytest.approx(expected, abs=1e-4)


def test_several_threads_give_what_one_gives() -> None:
    reference = build("llama")
    update = difference(moved(reference, random_update(reference, 1e-3)), reference)
    items = ragged(60)
    expected = ratios(update, reference, items)
    torch.set_num_threads(2)
    scoring_tokens = scoring.CPU_TOKENS
    assert ratios(update, reference, items, tokens_per_batch=2 * scoring_tokens) == pytest.approx(expected, abs=1e-4)


def test_progress_counts_items_over_both_nodes() -> None:
    reference = build("llama")
    policy = moved(reference, random_update(reference, 1e-3))
    seen: list[int] = []
    ratios(policy, reference, nodes=2, tokens_per_batch=40, on_progress=lambda done, tokens: seen.append(done))
    assert seen == sorted(seen)
    assert seen[-1] == len(ITEMS)
    assert ratios(policy, reference, []) == []


# --- what carries no derivative


def test_a_caller_in_inference_mode_gets_the_same() -> None:
    reference = build("llama")
    policy = moved(reference, random_update(reference, 1e-3))
    with torch.inference_mode():
        found = ratios(policy, reference)
    assert found == ratios(policy, reference)


def test_products_that_carry_none_stop_the_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN's linear gives values and no tangents, without an error; here the rule for products is taken away."""
    reference = build("llama")
    policy = moved(reference, random_update(reference, 1e-3))
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch is built without oneDNN")
    monkeypatch.setattr(products, "_gains", lambda: True)
    monkeypatch.setattr(forward_mode, "linear", None)
    monkeypatch.setattr(forward_mode.ForwardMode, "_product", None)
    with fast_products(reference.device), pytest.raises(NoForwardModeError, match="linear has no derivative"):
        ratios(policy, reference, onednn_products=False)


@pytest.mark.parametrize("where", ["one layer", "last layer"])
def test_a_layer_that_drops_the_tangent_stops_the_pass(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = build("llama")
    policy = moved(reference, random_update(reference, 1e-3))
    layer = reference.model.norm if where == "last layer" else reference.model.layers[0].mlp
    forward = type(layer).forward

    def dropping(self: Any, x: torch.Tensor) -> torch.Tensor:
        dropped: torch.Tensor = forward(self, x).detach()
        return dropped

    monkeypatch.setattr(layer, "forward", dropping.__get__(layer))
    with pytest.raises(NoForwardModeError, match="detach has no derivative in forward mode"):
        ratios(policy, reference)


class NoJvp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()


def test_an_operation_without_forward_mode_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = build("llama")
    policy = moved(reference, random_update(reference, 1e-3))
    layer = reference.model.layers[1].mlp
    forward = type(layer).forward

    def flash(x: torch.Tensor) -> torch.Tensor:
        x = x[:, None]
        attended: torch.Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(x, x, x)[0][:, 0]
        return attended

    kernels = {
        "NoJvp": NoJvp.apply,
        "_scaled_dot_product_flash_attention_for_cpu": flash,
    }
    for name, kernel in kernels.items():
        monkeypatch.setattr(layer, "forward", lambda x, kernel=kernel: forward(layer, kernel(x)))
        with pytest.raises(NoForwardModeError, match=f"{name}.* has no derivative in forward mode"):
            ratios(policy, reference)


def test_equal_models_are_refused() -> None:
    with pytest.raises(StageError, match="equal weights"):
        ratios(build("llama"), build("llama"))


def test_an_item_without_a_response_is_refused() -> None:
    reference = build("llama")
    policy = moved(reference, random_update(reference, 1e-3))
    with pytest.raises(ValueError, match="item 7 has an empty response"):
        ratios(policy, reference, [Scored([1], [])], first_item=7)


def test_a_weight_that_is_not_a_number_is_refused() -> None:
    reference = build("llama")
    policy = moved(reference, random_update(reference, 1e-3))
    with torch.no_grad():
        policy.model.layers[0].mlp.up_proj.weight[0, 0] = torch.nan
    with pytest.raises(StageError, match=r"NaN or infinite: model.layers.0.mlp.up_proj.weight"):
        ratios(policy, reference)
