"""Stochastic rounding: its expectation, what it leaves alone, its bits; and what a saved model keeps of an update."""

import math
from itertools import pairwise

import pytest
import torch

from spa_recipes.models import rounding
from spa_recipes.models.rounding import Update, splitmix64, stochastic

HALVES = [torch.bfloat16, torch.float16]
CPU = torch.device("cpu")


def random_weights(count: int, scale: float = 0.1, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)) * scale


def neighbours(exact: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The numbers of the lower precision on both sides, in float64, found with torch's rounding to nearest."""
    nearest = exact.to(dtype)
    step = torch.where(exact >= nearest.float(), math.inf, -math.inf).to(dtype)
    other = torch.nextafter(nearest, step)
    return nearest.double(), torch.where(nearest.float() == exact, nearest, other).double()


def test_the_generator_is_splitmix64() -> None:
    """The first numbers with the seed 1234567, as its authors' code prints them."""
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert [number % 2**64 for number in splitmix64(1234567, 0, 5, CPU).tolist()] == known
    assert [number % 2**64 for number in splitmix64(1234567, 2, 3, CPU).tolist()] == known[2:]


@pytest.mark.parametrize("dtype", HALVES)
def test_the_mean_over_ten_thousand_keys_is_the_unrounded_weight(dtype: torch.dtype) -> None:
    """Within its standard error; normal numbers of both signs, and subnormal ones of float16."""
    exact = torch.cat(
        [random_weights(24), random_weights(24, scale=2e-5), torch.tensor([1e-8, -3e-8, 60000.1, -1.0001])]
    )
    seeds = 10_000
    mean = sum(stochastic(exact, dtype, key=str(seed), name="w").double() for seed in range(seeds)) / seeds
    near, far = neighbours(exact, dtype)
    fraction = (exact.double() - near) / (far - near).where(far != near, 1)
    error = (far - near).abs() * (fraction * (1 - fraction) / seeds).sqrt()
    z = (mean - exact.double()) / error.where(error > 0, 1)
    assert z.abs().max() < 4
    assert 0.5 < z.square().mean() < 1.6  # as of a standard normal: neither more nor less


@pytest.mark.parametrize("dtype", HALVES)
def test_a_weight_goes_to_one_of_its_two_neighbours(dtype: torch.dtype) -> None:
    exact = torch.cat([random_weights(5000), random_weights(5000, scale=1e-6), random_weights(5000, scale=1e-39)])
    rounded = stochastic(exact, dtype, key="k", name="w").double()
    near, far = neighbours(exact, dtype)
    assert ((rounded == near) | (rounded == far)).all()
    assert (rounded == far).sum() > 1000


@pytest.mark.parametrize("dtype", HALVES)
def test_representable_weights_never_move(dtype: torch.dtype) -> None:
    """All 65,536 numbers: both zeros, subnormal ones, the largest, infinities; NaN stays NaN."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    for key in range(20):
        rounded = stochastic(every.float(), dtype, key=str(key), name="w")
        number = ~every.isnan()
        assert torch.equal(rounded.view(torch.int16)[number], every.view(torch.int16)[number])
        assert rounded[~number].isnan().all()


@pytest.mark.parametrize("dtype", HALVES)
def test_a_finite_weight_never_becomes_infinite(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    beyond = torch.tensor([torch.finfo(torch.float32).max, -torch.finfo(torch.float32).max]).repeat(500)
    assert set(stochastic(beyond, dtype, key="k", name="w").tolist()) == {largest, -largest}


@pytest.mark.parametrize("dtype", HALVES)
def test_whole_and_in_shards_it_is_the_same_bytes(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = random_weights(10_007).reshape(-1)
    whole = stochastic(exact, dtype, key="k", name="w")
    for cuts in ([0, 1, 2, 5, 4096, 10_007], [0, 3333, 6667, 10_007]):
        shards = [
            stochastic(exact[first:end], dtype, key="k", name="w", first_index=first) for first, end in pairwise(cuts)
        ]
        assert torch.equal(torch.cat(shards), whole)
    monkeypatch.setattr(rounding, "BLOCK", 129)
    assert torch.equal(stochastic(exact, dtype, key="k", name="w"), whole)


def test_a_transposed_tensor_is_counted_by_rows() -> None:
    exact = random_weights(600).reshape(20, 30)
    whole = stochastic(exact, torch.bfloat16, key="k", name="w")
    assert torch.equal(stochastic(exact.t().contiguous().t(), torch.bfloat16, key="k", name="w"), whole)


def test_key_and_name_choose_the_bits() -> None:
    exact = random_weights(1000)
    one, again, other_key, other_name = (
        stochastic(exact, torch.bfloat16, key=key, name=name)
        for key, name in (("a", "w"), ("a", "w"), ("b", "w"), ("a", "v"))
    )
    assert torch.equal(one, again)
    for other in (other_key, other_name):
        differ = (one != other).double().mean()
        assert 0.25 < differ < 0.42  # 2f(1 - f) of two independent choices, f uniform: a third


def test_the_bits_are_these_on_every_machine() -> None:
    """Frozen: another generator would give other models for the same key."""
    exact = torch.full((16,), 1.0 + 2**-8)  # halfway between two numbers of bfloat16
    up = [int(value > 1) for value in stochastic(exact, torch.bfloat16, key="k", name="w").tolist()]
    assert up == [1, 0, 1, 1, 1, 0, 1, 0, 0, 1, 1, 0, 1, 0, 0, 0]


def test_another_precision_is_refused() -> None:
    with pytest.raises(ValueError, match=r"not torch\.float32"):
        stochastic(torch.zeros(1), torch.float32, key="k", name="w")


def update_of(start: torch.Tensor, trained: torch.Tensor, saved: torch.Tensor) -> dict[str, float]:
    update = Update()
    update.add(start, trained, saved)
    return update.figures()


def tenth_of_a_unit(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights of bfloat16, and the same after an update of a tenth of a unit in the last place, of either sign."""
    start = random_weights(count).bfloat16().float()
    unit = torch.exp2(start.abs().log2().floor() - 7)
    sign = torch.randn(count, generator=torch.Generator().manual_seed(1)).sign()
    return start, start + sign * unit / 10


def test_stochastic_rounding_keeps_an_update_of_a_tenth_of_a_unit_and_nearest_keeps_nothing() -> None:
    start, trained = tenth_of_a_unit(40_000)
    u = (trained - start).double()
    unit = u.abs() * 10
    # Each weight moves by a unit with the probability 1/10: the variance of <saved - start, u>/|u|^2.
    standard_error = (((unit * u).square() * 0.1 * 0.9).sum().sqrt() / u.square().sum()).item()
    kept = [
        update_of(start, trained, stochastic(trained, torch.bfloat16, key=str(key), name="w"))["update_kept"]
        for key in range(20)
    ]
    assert all(abs(value - 1) < 4 * standard_error for value in kept)
    assert abs(sum(kept) / len(kept) - 1) < 3 * standard_error / math.sqrt(len(kept))
    figures = update_of(start, trained, trained.bfloat16())
    # At a power of two the numbers below are half as far apart, so that a tenth is a fifth there: it vanishes, too.
    assert figures["update_kept"] == figures["update_visible"] == 0.0
    assert figures["rounding_to_update"] == pytest.approx(1.0)


def test_the_figures_are_those_of_their_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "BLOCK", 100)  # several blocks
    start, trained = random_weights(1050, seed=1), random_weights(1050, seed=2)
    saved = stochastic(trained, torch.float16, key="k", name="w")
    u, kept = (trained - start).double(), (saved - start).double()
    visible = (trained.half() - start).double()
    figures = update_of(start.reshape(30, 35), trained.reshape(30, 35), saved.reshape(30, 35))
    assert figures["update_kept"] == pytest.approx((kept @ u / (u @ u)).item(), rel=1e-6)
    assert figures["update_visible"] == pytest.approx((visible @ u / (u @ u)).item(), rel=1e-6)
    ratio = (saved.double() - trained.double()).norm() / u.norm()
    assert figures["rounding_to_update"] == pytest.approx(ratio.item(), rel=1e-6)


def test_weights_that_did_not_change_have_no_figures() -> None:
    same = random_weights(10)
    assert update_of(same, same, same.bfloat16()) == {}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", HALVES)
def test_a_gpu_gives_the_same_bytes(dtype: torch.dtype) -> None:
    exact = torch.cat([random_weights(100_003), random_weights(100_003, scale=1e-6), random_weights(999, scale=1e-39)])
    on_gpu = stochastic(exact.cuda(), dtype, key="k", name="w")
    assert torch.equal(on_gpu.cpu(), stochastic(exact, dtype, key="k", name="w"))
