"""The parts of the benchmark of half precision that are easy to get wrong: its plain versions and its figures."""

from pathlib import Path

import numpy as np
import pytest
import torch

from spa_recipes.generation.scoring import Scored, sequence_logps
from spa_recipes.models import rounding
from tests.benchmarks.precision import figures
from tests.benchmarks.precision.figures import Margins, with_intervals
from tests.benchmarks.precision.kept import Kept, NotMadeError
from tests.benchmarks.precision.plain import stochastic_bfloat16, tangent
from tests.kit.tiny_models import tiny_llama


def test_plain_rounding_takes_a_neighbour_and_keeps_the_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.tensor([1.0009765625, -0.30001, 3e-5, 2.0])
    drawn = torch.stack([stochastic_bfloat16(weight, generator) for _ in range(4000)])
    assert all(len(values.unique()) == count for values, count in zip(drawn.T, (2, 2, 2, 1), strict=True))
    assert torch.equal(drawn, drawn.bfloat16().float())
    error = (drawn.mean(0) - weight).abs() / (drawn.std(0) / 4000**0.5).clamp_min(1e-12)
    assert error[:3].max() < 4
    assert drawn[0, 3] == 2.0


def test_plain_rounding_keeps_as_much_of_an_update_as_the_package_does() -> None:
    torch.manual_seed(0)
    start = (torch.randn(200_000) * 0.1).bfloat16().float()
    trained = start + 1e-5 * torch.randn(200_000)
    ours, plain = rounding.Update(), rounding.Update()
    ours.add(start, trained, rounding.stochastic(trained, torch.bfloat16, key="k", name="n"))
    plain.add(start, trained, stochastic_bfloat16(trained, torch.Generator().manual_seed(0)).bfloat16())
    for name in ("update_kept", "rounding_to_update"):
        assert plain.figures()[name] == pytest.approx(ours.figures()[name], rel=0.1)


def test_the_plain_tangent_is_the_difference_of_near_models() -> None:
    reference, policy = tiny_llama(0).double(), tiny_llama(0).double()
    with torch.no_grad():
        for weight in policy.parameters():
            weight += 1e-3 * torch.randn_like(weight)
    item = Scored([3, 4, 5], [6, 7, 2])
    true = [sequence_logps(model, [item], tokens_per_batch=64)[0] for model in (policy, reference)]
    assert tangent(policy, reference, item) == pytest.approx(true[0] - true[1], rel=2e-3)  # norms are float32


def test_figures_of_margins() -> None:
    true = np.array([1.0, -2.0, 3.0, -4.0])
    same = Margins(["a", "b", "c", "d"], true, true)
    assert figures.slope(same) == figures.correlation(same) == figures.truth_agreement(same) == pytest.approx(1.0)
    assert figures.median_error(same) == 0.0
    assert figures.label_agreement(same) == 0.5
    half = same._replace(found=np.array([0.5, 1.0, 1.5, 0.0]))  # one label flipped, one tie
    assert figures.truth_agreement(half) == 0.625
    assert figures.label_agreement(half) == 0.875
    assert figures.median_error(half) == 2.25


def test_an_interval_resamples_prompts_and_not_pairs() -> None:
    rng = np.random.default_rng(1)
    right = rng.random(100) < 0.7
    one_each = Margins([str(i) for i in range(100)], np.ones(100), np.where(right, 1.0, -1.0))
    fourfold = Margins([str(i) for i in range(100)] * 4, np.ones(400), np.tile(one_each.found, 4))
    once, four_times = (
        figure for margins in (one_each, fourfold) for figure in with_intervals(margins, figures.truth_agreement)
    )
    assert once.value == four_times.value
    assert once.low < once.value < once.high
    assert four_times.high - four_times.low == pytest.approx(once.high - once.low, rel=0.2)


def test_what_was_made_is_found_by_what_made_it(tmp_path: Path) -> None:
    kept = Kept(tmp_path, "a machine")
    assert kept.get("passes", {"policy": "a"}, lambda: [1.0]) == [1.0]
    assert kept.get("passes", {"policy": "a"}, lambda: [2.0]) == [1.0]
    assert kept.get("passes", {"policy": "b"}, lambda: [2.0]) == [2.0]
    assert kept.machines() == ["a machine"]
    looking = Kept(tmp_path, only_look=True)
    assert looking.get("passes", {"policy": "b"}, list) == [2.0]
    with pytest.raises(NotMadeError):
        looking.get("passes", {"policy": "c"}, list)
